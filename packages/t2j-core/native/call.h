// One call of a torch function on the buffers of one call frame: lends them, calls, and copies the results to XLA.
// Called by the handler on the thread on which XLA runs the call, with the GIL held throughout. The frame has passed
// `check_frame`. No Python error is left set.
#pragma once
#include "site.h"

namespace t2j {

// Runs the function and fills the result buffers. An error of XLA if it failed, else null.
ffi::Error* run_call(Site& site, ffi::CallFrame* frame, dl::Device device);

}  // namespace t2j
