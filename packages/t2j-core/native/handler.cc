// The handlers that XLA calls; see `handler.h` for the threads. Each takes the GIL itself, after `Admission` has let
// the call in: no thread may ask for the GIL of an interpreter that is closing. No C++ exception and no Python error
// leaves a handler: both become an `ffi::Error`.
#include "handler.h"

#include <new>

#include "abi.h"
#include "call.h"
#include "errors.h"
#include "frame.h"
#include "hooks.h"
#include "site.h"
#include "turn.h"

namespace t2j {

std::atomic<int64_t> calls_in_flight{0};
std::atomic<int> gate{kOpen};

namespace {

// Grad mode on; autocast, inference mode, function and dispatch modes off: what a thread of XLA has by itself.
bool torch_state_is_default() {
  if (!is_true(hooks.is_grad_enabled())) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(hooks.state_getters.tuple); ++i) {
    Ref value = Ref::steal(PyObject_CallNoArgs(PyTuple_GET_ITEM(hooks.state_getters.tuple, i)));
    if (value && PyObject_IsTrue(value.get()) == 0) continue;
    PyErr_Clear();
    return false;
  }
  return true;
}

// XLA's CPU client runs at most 32 programs at once (`max_inflight_computations_per_device`). Programs that a thread
// has nested in each other end after the innermost one, which would wait for its turn for ever. A signal handler that
// calls a function, and takes longer than the time until the next signal, nests programs without end.
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

// Sets `paired_call` for the time of a call. Two calls are paired if they belong to one execution of a program on one
// device. A call inside another one is not paired.
class Pairing {
 public:
  Pairing(ffi::CallFrame* frame, const Site& site, dl::Device device) : outer_(paired_call) {
    paired_call = nullptr;
    if (site.pair < 0 || device.type == dl::kCPU || nested > 1) return;
    ffi::RunIdGet args{sizeof(ffi::RunIdGet), nullptr, frame->context, 0};
    if (frame->api->run_id_get(&args)) return;  // without it the number is read from the device
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

// Runs `body`, which returns an `ffi::Error*`, and turns a C++ exception into one.
template <typename Body>
ffi::Error* without_exceptions(const ffi::Api* api, Body body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return ffi::make_error(api, ffi::kInternal, "t2j: out of memory");
  } catch (...) {
    return ffi::make_error(api, ffi::kInternal, "t2j: an unexpected C++ exception");
  }
}

// The stream of a call, as a number.
ffi::Error* stream_of(const ffi::CallFrame* frame, intptr_t* pointer) {
  ffi::StreamGet args{sizeof(ffi::StreamGet), nullptr, frame->context, nullptr};
  ffi::Error* error = frame->api->stream_get(&args);
  *pointer = reinterpret_cast<intptr_t>(args.stream);
  return error;
}

// Torch's state for the time in which a call of a site is in torch: the default one and, on a GPU, XLA's stream.
// Every `enter` is undone by `leave`, even after an error. With the GIL.
class InTorch {
 public:
  InTorch(const ffi::CallFrame* frame, Site& site, dl::Device device)
      : frame_(frame), site_(site), device_(device), is_first_(!site.called.load(std::memory_order_relaxed)) {}

  // On a GPU, `is_captured` says that XLA may be capturing.
  ffi::Error* enter(bool is_captured) {
    if (is_first_ || !torch_state_is_default()) {
      state_ = hooks.enter_state(is_first_, site_.signature);
      if (!state_) return take_python_error(frame_->api, site_.signature.get());
    }
    if (device_.type == dl::kCPU) return nullptr;
    intptr_t pointer = 0;
    if (ffi::Error* error = stream_of(frame_, &pointer)) return error;
    is_captured_ = is_captured;
    stream_ = is_captured ? hooks.enter_capture(site_.target, pointer, device_.id)
                          : hooks.enter_stream(pointer, device_.id);
    return stream_ ? nullptr : take_python_error(frame_->api, site_.signature.get());
  }

  // After the call has run. It may have turned gradients off for this thread, which may be the caller's.
  void restore_grad_mode() {
    if (!state_ && !is_true(hooks.is_grad_enabled()) && !hooks.set_grad_enabled(true)) PyErr_Clear();
  }

  // `error` is the call's own, which comes first.
  ffi::Error* leave(ffi::Error* error) {
    if (stream_) {
      error = first_of(error, is_captured_ ? hooks.leave_capture(stream_) : hooks.leave_stream(stream_));
    }
    if (state_) error = first_of(error, hooks.leave_state(state_));
    raise_interrupt();
    return error;
  }

 private:
  ffi::Error* first_of(ffi::Error* error, const Ref& left) {
    if (left) return error;
    if (!error) return take_python_error(frame_->api, site_.signature.get());
    PyErr_Clear();
    return error;
  }

  const ffi::CallFrame* frame_;
  Site& site_;
  dl::Device device_;
  bool is_first_, is_captured_ = false;
  Ref state_, stream_;
};

// Calls the site in the default state of torch, and on a GPU on XLA's stream. Entered with the GIL.
ffi::Error* call_torch(ffi::CallFrame* frame, Site& site, dl::Device device) {
  if (ffi::Error* error = check_frame(site, *frame)) return error;
  Nesting nesting;
  if (nested > kMostNested) {
    PyErr_Format(
        PyExc_RecursionError,
        "%d calls of torch functions are nested in each other on one thread, and XLA cannot run many more. Does "
        "a signal handler call one, and take longer than the time until the next signal?",
        nested);
    return take_python_error(frame->api, site.signature.get());
  }
  InTorch in_torch(frame, site, device);
  ffi::Error* error = in_torch.enter(site.is_captured);
  if (!error) {
    Pairing pairing(frame, site, device);
    error = without_exceptions(frame->api, [&] { return run_call(site, frame, device); });
    PyErr_Clear();  // a C++ exception may have left one
    if (!error) site.called.store(true, std::memory_order_relaxed);
    in_torch.restore_grad_mode();
  }
  return in_torch.leave(error);
}

// Runs a site that may be captured once without XLA's memory: what torch makes at its first call, such as handles of
// libraries, cannot be made in a capture. Entered with the GIL.
ffi::Error* warm_up(ffi::CallFrame* frame, Site& site, dl::Device device) {
  Nesting nesting;
  InTorch in_torch(frame, site, device);
  ffi::Error* error = in_torch.enter(false);
  if (!error) {
    Ref written = hooks.warm_up(site.target, device.id);
    if (!written) error = take_python_error(frame->api, site.signature.get());
    for (Py_ssize_t i = 0; !error && i < PyTuple_GET_SIZE(written.get()); ++i)
      site.copy_from_now_on(PyLong_AsSize_t(PyTuple_GET_ITEM(written.get(), i)));
    in_torch.restore_grad_mode();
  }
  return in_torch.leave(error);
}

// Refuses calls that may not touch Python any more. Counts the others, so that `close_gate` can wait for them.
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

// A thread of XLA keeps its Python thread state from its first call on. To make one for each call, and with it all
// `threading.local` data, takes longer than a small call. XLA keeps its threads.
class Gil {
 public:
  Gil() : state_(PyGILState_GetThisThreadState() ? PyGILState_Ensure() : first_of_thread()) {}
  ~Gil() { PyGILState_Release(state_); }
  Gil(const Gil&) = delete;
  Gil& operator=(const Gil&) = delete;

 private:
  static PyGILState_STATE first_of_thread() {
    PyGILState_Ensure();  // is never released
    PyEval_SaveThread();
    return PyGILState_Ensure();
  }

  PyGILState_STATE state_;
};

ffi::Error* device_of(const ffi::CallFrame* frame, dl::Device* device) {
  if (device->type == dl::kCPU) return nullptr;
  ffi::DeviceOrdinalGet args{sizeof(ffi::DeviceOrdinalGet), nullptr, frame->context, 0};
  ffi::Error* error = frame->api->device_ordinal_get(&args);
  device->id = args.ordinal;
  return error;
}

ffi::Error* execute(ffi::CallFrame* frame, dl::DeviceType type) noexcept {
  ffi::Error* error = nullptr;
  if (ffi::handle_metadata_query(frame, false, &error)) return error;
  Admission admission;
  if ((error = admission.refused(frame->api))) return error;
  return without_exceptions(frame->api, [&]() -> ffi::Error* {
    dl::Device device{type, 0};
    if (ffi::Error* failed = device_of(frame, &device)) return failed;
    void* state = nullptr;
    if (ffi::has_state(frame->api))
      if (ffi::Error* failed = ffi::get_state(frame, &state)) return failed;
    Turn turn(type == dl::kCPU && nested == 0 ? static_cast<Site*>(state) : nullptr);
    Gil gil;
    if (state) return call_torch(frame, *static_cast<Site*>(state), device);
    std::unique_ptr<Site> site = Site::from_attributes(frame->attrs);
    return site ? call_torch(frame, *site, device) : take_python_error(frame->api, nullptr);
  });
}

ffi::Error* make_state(ffi::CallFrame* frame, bool is_captured) noexcept {
  return without_exceptions(frame->api, [&]() -> ffi::Error* {
    ffi::Error* error = nullptr;
    if (ffi::handle_metadata_query(frame, true, &error) || !ffi::has_state(frame->api)) return error;
    Admission admission;
    if ((error = admission.refused(frame->api))) return error;
    Gil gil;
    std::unique_ptr<Site> site = Site::from_attributes(frame->attrs, is_captured);
    if (!site) return take_python_error(frame->api, nullptr);
    error = ffi::set_state(frame, site.get());
    if (!error) site.release();  // XLA owns it, and calls `delete_state`
    return error;
  });
}

// The site of a call that may be captured, and its device. A site cannot be made for one call: it owns the memory that
// captured graphs work on.
ffi::Error* captured_site(ffi::CallFrame* frame, Site** site, dl::Device* device) {
  if (ffi::Error* error = device_of(frame, device)) return error;
  void* state = nullptr;
  if (ffi::has_state(frame->api))
    if (ffi::Error* error = ffi::get_state(frame, &state)) return error;
  *site = static_cast<Site*>(state);
  if (state) return nullptr;
  return ffi::make_error(frame->api, ffi::kFailedPrecondition,
                         "t2j: this XLA keeps no state for calls in command buffers. Wrap the function without "
                         "`command_buffer=True`, or use another version of jaxlib.");
}

// Calls `body` with the site and the device of a call that may be captured.
template <typename Body>
ffi::Error* in_captured(ffi::CallFrame* frame, Body body) noexcept {
  ffi::Error* error = nullptr;
  if (ffi::handle_metadata_query(frame, false, &error, ffi::kCommandBufferCompatible)) return error;
  Admission admission;
  if ((error = admission.refused(frame->api))) return error;
  return without_exceptions(frame->api, [&]() -> ffi::Error* {
    dl::Device device{dl::kCUDA, 0};
    Site* site = nullptr;
    ffi::Error* failed = captured_site(frame, &site, &device);
    return failed ? failed : body(*site, device);
  });
}

}  // namespace

int call_depth() { return nested; }

Ref current_pair() {
  if (!paired_call) return Ref::borrow(Py_None);
  auto [run, device, pair] = *paired_call;
  return Ref::steal(
      Py_BuildValue("LLL", static_cast<long long>(run), static_cast<long long>(device), static_cast<long long>(pair)));
}

namespace ffi {
void delete_state(void* state) {
  auto* site = static_cast<Site*>(state);
  ++calls_in_flight;
  if (gate.load() == kOpen) {
    Gil gil;
    delete site;
  }  // else it is never freed: the process is ending
  --calls_in_flight;
}
}  // namespace ffi

ffi::Error* instantiate(ffi::CallFrame* frame) noexcept { return make_state(frame, false); }
ffi::Error* instantiate_captured(ffi::CallFrame* frame) noexcept { return make_state(frame, true); }

ffi::Error* execute_cpu(ffi::CallFrame* frame) noexcept { return execute(frame, dl::kCPU); }
ffi::Error* execute_cuda(ffi::CallFrame* frame) noexcept { return execute(frame, dl::kCUDA); }
ffi::Error* execute_rocm(ffi::CallFrame* frame) noexcept { return execute(frame, dl::kROCM); }

ffi::Error* initialize_captured(ffi::CallFrame* frame) noexcept {
  return in_captured(frame, [&](Site& site, dl::Device device) -> ffi::Error* {
    if (site.warmth.is_warm(device.id)) return nullptr;
    Gil gil;
    ffi::Error* error = warm_up(frame, site, device);
    if (!error) site.warmth.set_warm(device.id);
    return error;
  });
}

ffi::Error* execute_captured(ffi::CallFrame* frame) noexcept {
  return in_captured(frame, [&](Site& site, dl::Device device) -> ffi::Error* {
    Gil gil;
    return call_torch(frame, site, device);
  });
}

ffi::Error* execute_nothing(ffi::CallFrame* frame) noexcept {
  ffi::Error* error = nullptr;
  ffi::handle_metadata_query(frame, false, &error);
  return error;
}

}  // namespace t2j
