// How Python errors become errors of XLA; see `errors.h`. Runs on the thread of the call, with the GIL held. The hook
// `report` runs while the tensors of the call still exist, so nothing here may keep the exception: its traceback refers
// to them.
#include "errors.h"

#include "abi.h"
#include "handler.h"
#include "hooks.h"

namespace t2j {

namespace {

thread_local bool interrupted = false;  // a call of this thread met a KeyboardInterrupt

// The exception that is set, with its traceback. Clears it. Null if there is none.
Ref fetch_exception() {
  PyObject *type, *value, *trace;  // `PyErr_NormalizeException` exchanges them
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  if (value && trace) PyException_SetTraceback(value, trace);
  Ref::steal(type);
  Ref::steal(trace);
  return Ref::steal(value);
}

}  // namespace

ffi::Error* take_python_error(const ffi::Api* api, PyObject* signature) {
  Ref exception = fetch_exception();
  Ref report;
  if (exception) report = hooks.report(signature ? signature : Py_None, exception, call_depth());
  exception = Ref();
  int code = ffi::kInternal;
  const char* message = "the torch function raised, and the error could not be reported";
  if (report && !PyArg_ParseTuple(report.get(), "is", &code, &message)) PyErr_Clear();
  bool is_interrupt = PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt);  // inside the hook
  if (!report && is_interrupt) code = ffi::kCancelled;
  interrupted |= code == ffi::kCancelled;
  PyErr_Clear();
  return ffi::make_error(api, static_cast<ffi::ErrorCode>(code), message);
}

void raise_interrupt() {
  if (interrupted) PyErr_SetInterrupt();
  interrupted = false;
}

bool is_true(const Ref& returned) {
  if (!returned) PyErr_Clear();
  return returned.get() == Py_True;
}

void FirstError::take() {
  if (type_) {
    PyErr_Clear();
    return;
  }
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  type_ = Ref::steal(type);
  value_ = Ref::steal(value);
  trace_ = Ref::steal(trace);
}

bool FirstError::restore() {
  if (!type_) return true;
  PyErr_Restore(type_.release(), value_.release(), trace_.release());
  return false;
}

}  // namespace t2j
