// The handlers XLA calls. No C++ exception and no Python error leaves them: both become an `ffi::Error`.
#include "handler.h"

#include <new>

#include "call.h"
#include "site.h"
#include "state.h"

namespace t2j {

std::atomic<int64_t> calls_in_flight{0};
std::atomic<int> gate{kOpen};

namespace {

PyObject* const* no_args = nullptr;

bool gradients_are_on() { return is_true(PyObject_Vectorcall(hooks.is_grad_enabled, no_args, 0, nullptr)); }

// Grad mode on; autocast, inference mode, function and dispatch modes off: what a thread of XLA has by itself.
bool torch_state_is_default() {
  if (!gradients_are_on()) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(hooks.state_getters); ++i) {
    PyObject* answer = PyObject_Vectorcall(PyTuple_GET_ITEM(hooks.state_getters, i), no_args, 0, nullptr);
    int on = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    if (on != 0) {
      PyErr_Clear();
      return false;
    }
  }
  return true;
}

// XLA runs at most 32 programs of a CPU at once (`max_inflight_computations_per_device` of its client). Those that a
// thread has nested in each other never end before the innermost, which would wait for its turn for ever: as where a
// signal handler calls a function and takes longer than it is until the next signal.
constexpr int kMostNested = 24;
thread_local int nested = 0;

struct Nesting {
  Nesting() { ++nested; }
  ~Nesting() { --nested; }
};

// Which of the paired calls a thread is in.
struct PairedCall {
  int64_t run, device, pair;
};
thread_local const PairedCall* paired_call = nullptr;

// Tells what runs on this thread which paired call it is in: calls of one execution of a program on one device. A call
// inside of another one is not paired.
class Pairing {
 public:
  Pairing(ffi::CallFrame* frame, const Site& site, dl::Device device) : outer_(paired_call) {
    paired_call = nullptr;
    if (site.pair < 0 || device.type == dl::kCPU || nested > 1) return;
    ffi::RunIdGet args{sizeof(ffi::RunIdGet), nullptr, frame->context, 0};
    if (frame->api->run_id_get(&args)) return;  // what cannot be told is read from the device
    call_ = {args.run_id, device.id, site.pair};
    paired_call = &call_;
  }
  ~Pairing() { paired_call = outer_; }
  Pairing(const Pairing&) = delete;
  Pairing& operator=(const Pairing&) = delete;

 private:
  const PairedCall* outer_;  // of the call that this one interrupts
  PairedCall call_{};
};

// Entered with the GIL.
ffi::Error* call_torch(ffi::CallFrame* frame, Site& site, dl::Device device) {
  Nesting nesting;
  if (nested > kMostNested) {
    PyErr_Format(
        PyExc_RecursionError,
        "%d calls of torch functions are nested in each other on one thread, and XLA cannot run many more. Does "
        "a signal handler call one, and take longer than the time until the next signal?",
        nested);
    return take_python_error(frame->api, site.label);
  }
  bool first = !site.called.load(std::memory_order_relaxed);
  bool ok = true;
  PyObject *state = nullptr, *stream = nullptr;
  if (first || !torch_state_is_default()) {
    state = PyObject_CallFunctionObjArgs(hooks.enter_state, first ? Py_True : Py_False, site.label, nullptr);
    ok = state != nullptr;
  }
  if (ok && device.type != dl::kCPU) {
    ffi::StreamGet args{sizeof(ffi::StreamGet), nullptr, frame->context, nullptr};
    if (ffi::Error* error = frame->api->stream_get(&args)) {
      Py_XDECREF(state ? PyObject_CallOneArg(hooks.leave_state, state) : nullptr);
      Py_XDECREF(state);
      return error;
    }
    stream = PyObject_CallFunction(hooks.enter_stream, "Li", reinterpret_cast<long long>(args.stream), device.id);
    ok = stream != nullptr;
  }
  ffi::Error* error = nullptr;
  if (ok) {
    Pairing pairing(frame, site, device);
    error = call_site(site, frame, device);
    if (first && !error) site.called.store(true, std::memory_order_relaxed);
    if (!state && !gradients_are_on()) {  // the function turned them off for its thread, which may be the caller's
      Py_XDECREF(PyObject_CallOneArg(hooks.set_grad_enabled, Py_True));
    }
  } else {
    error = take_python_error(frame->api, site.label);
  }
  for (auto [hook, token] : {std::pair{hooks.leave_stream, stream}, std::pair{hooks.leave_state, state}}) {
    if (!token) continue;
    PyObject* done = PyObject_CallOneArg(hook, token);
    if (!done && !error) error = take_python_error(frame->api, site.label);
    PyErr_Clear();
    Py_XDECREF(done);
    Py_DECREF(token);
  }
  raise_interrupt();
  return error;
}

// Refuses calls that may not touch Python any more, and counts the others so that the exit can wait for them.
class Admission {
 public:
  Admission() { ++calls_in_flight; }
  ~Admission() { --calls_in_flight; }
  ffi::Error* refused(const ffi::Api* api) const {
    switch (gate.load()) {
      case kOpen:
        return nullptr;
      case kClosing:
        return ffi::make_error(api, ffi::kCancelled, "t2j: the Python interpreter is shutting down");
      default:
        return ffi::make_error(api, ffi::kFailedPrecondition,
                               "t2j: this process was forked from one that had already used XLA, whose threads do not "
                               "survive a fork. Start workers with the 'spawn' method instead.");
    }
  }
};

class Gil {
 public:
  Gil() : state_(PyGILState_Ensure()) {}
  ~Gil() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_;
};

ffi::Error* execute(ffi::CallFrame* frame, dl::DeviceType type) noexcept {
  ffi::Error* error = nullptr;
  if (ffi::answer_metadata(frame, false, &error)) return error;
  Admission admission;
  if ((error = admission.refused(frame->api))) return error;
  try {
    dl::Device device{type, 0};
    if (type != dl::kCPU) {
      ffi::DeviceOrdinalGet args{sizeof(ffi::DeviceOrdinalGet), nullptr, frame->context, 0};
      if ((error = frame->api->device_ordinal_get(&args))) return error;
      device.id = args.ordinal;
    }
    void* state = nullptr;
    if (ffi::has_state(frame->api) && (error = ffi::get_state(frame, &state))) return error;
    Gil gil;
    if (state) return call_torch(frame, *static_cast<Site*>(state), device);
    std::unique_ptr<Site> site = Site::from_attributes(frame->attrs);
    return site ? call_torch(frame, *site, device) : take_python_error(frame->api, nullptr);
  } catch (const std::bad_alloc&) {
    return ffi::make_error(frame->api, ffi::kInternal, "t2j: out of memory");
  } catch (...) {
    return ffi::make_error(frame->api, ffi::kInternal, "t2j: an unexpected C++ exception");
  }
}

}  // namespace

int call_depth() { return nested; }

PyObject* current_pair() {
  if (!paired_call) Py_RETURN_NONE;
  return Py_BuildValue("LLL", static_cast<long long>(paired_call->run), static_cast<long long>(paired_call->device),
                       static_cast<long long>(paired_call->pair));
}

namespace ffi {
void delete_state(void* state) {
  auto* site = static_cast<Site*>(state);
  ++calls_in_flight;
  if (gate.load() == kOpen) {
    Gil gil;
    delete site;
  }  // otherwise it stays: the process is ending
  --calls_in_flight;
}
}  // namespace ffi

ffi::Error* instantiate(ffi::CallFrame* frame) noexcept {
  ffi::Error* error = nullptr;
  if (ffi::answer_metadata(frame, true, &error)) return error;
  if (!ffi::has_state(frame->api)) return nullptr;
  Admission admission;
  if ((error = admission.refused(frame->api))) return error;
  try {
    Gil gil;
    std::unique_ptr<Site> site = Site::from_attributes(frame->attrs);
    if (!site) return take_python_error(frame->api, nullptr);
    error = ffi::set_state(frame, site.get());
    if (!error) site.release();
    return error;
  } catch (...) {
    return ffi::make_error(frame->api, ffi::kInternal, "t2j: an unexpected C++ exception");
  }
}

ffi::Error* execute_cpu(ffi::CallFrame* frame) noexcept { return execute(frame, dl::kCPU); }
ffi::Error* execute_cuda(ffi::CallFrame* frame) noexcept { return execute(frame, dl::kCUDA); }
ffi::Error* execute_rocm(ffi::CallFrame* frame) noexcept { return execute(frame, dl::kROCM); }

ffi::Error* execute_nothing(ffi::CallFrame* frame) noexcept {
  ffi::Error* error = nullptr;
  ffi::answer_metadata(frame, false, &error);
  return error;
}

}  // namespace t2j
