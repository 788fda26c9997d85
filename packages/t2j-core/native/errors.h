// How Python errors become errors of XLA. Called by the handler and by what it calls, on the thread on which XLA runs
// the call, with the GIL held. No Python error may stay set when a handler returns, so every path that fails ends in
// `take_python_error` or `PyErr_Clear`. Only `FirstError::restore` sets an error.
#pragma once
#include <Python.h>

#include "ref.h"
#include "xla_ffi.h"

namespace t2j {

// Turns the Python error that is set into an error of XLA, and clears it. The hook `report` keeps the exception and
// words the message. `signature` is that of the site; null where no site was found.
ffi::Error* take_python_error(const ffi::Api* api, PyObject* signature);

// If a call of this thread met a KeyboardInterrupt, raises the signal again. The last step before XLA goes on.
void raise_interrupt();

// Whether a Python call returned `True`. An error counts as false and is cleared.
bool is_true(const Ref& returned);

// Keeps the first of several Python errors while work goes on.
class FirstError {
 public:
  // Takes the error that is set.
  void take();
  // False with the first error set, if there was one; else true.
  bool restore();

 private:
  Ref type_, value_, trace_;
};

}  // namespace t2j
