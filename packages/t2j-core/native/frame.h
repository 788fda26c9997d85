// Compares the buffers of a call frame with those that its site was built for, before a tensor is made over any of
// them. A program from another process, or one that XLA compiled wrongly, may have others. Called by the handler on the
// thread on which XLA runs the call. Uses no Python object, so it needs no GIL. It reads the frame but no memory of a
// buffer.
#pragma once
#include "site.h"
#include "xla_ffi.h"

namespace t2j {

// Null if the counts of operands and results, and the dtype, rank and dimensions of each, are those of the site, and
// each has memory unless it has no elements. Else an error (INTERNAL) that names the first operand or result that
// differs.
ffi::Error* check_frame(const Site& site, const ffi::CallFrame& frame);

// XLA's number for a dtype by the short name that t2j prints, such as "f32"; -1 for a name that is not known.
int32_t dtype_by_name(const char* name);

}  // namespace t2j
