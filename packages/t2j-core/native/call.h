// One call of a torch function on the buffers of one call frame. The GIL is held throughout.
#pragma once
#include "site.h"

namespace t2j {

// Runs the function and fills the result buffers. An error of XLA if it failed, else null.
ffi::Error* call_site(Site& site, ffi::CallFrame* frame, dl::Device device);

// Turns the Python error that is set into an error of XLA. The hook keeps the exception and words the message.
ffi::Error* take_python_error(const ffi::Api* api, PyObject* label);

// Raises the signal of a call that was interrupted again, as the last thing before XLA goes on.
void raise_interrupt();

// Whether the answer of a Python call, which is let go, is `True`. An error counts as no and is cleared.
bool is_true(PyObject* owned);

}  // namespace t2j
