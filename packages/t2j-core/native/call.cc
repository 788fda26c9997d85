#include "call.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "handler.h"
#include "loans.h"
#include "state.h"

namespace t2j {

bool is_true(PyObject* owned) {
  if (!owned) PyErr_Clear();
  bool answer = owned == Py_True;
  Py_XDECREF(owned);
  return answer;
}

namespace {

thread_local bool interrupted = false;  // a call of this thread met a KeyboardInterrupt

// `copy_` runs on several threads and without the GIL; below this size its overhead is larger than the copy.
constexpr int64_t kCopyInTorch = 1 << 17;

// On a GPU, results below this size are copied together: for small ones a launch takes longer than the copy.
constexpr int64_t kCopyAlone = 1 << 20;

bool is_torch_type(PyObject* object) {
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == hooks.tensor_type || type == hooks.parameter_type;
}

// What torch says of a tensor, read without copying. `capsule` owns the answer on torch before 2.10.
bool describe(PyObject* tensor, dl::Tensor* out, PyObject** capsule) {
  if (hooks.exchange) return hooks.exchange->borrow_from_object(tensor, out) == 0;
  *capsule = PyObject_CallOneArg(hooks.to_dlpack, tensor);
  if (!*capsule) return false;
  *out = static_cast<dl::Managed*>(PyCapsule_GetPointer(*capsule, "dltensor"))->tensor;
  return true;
}

bool is_contiguous(const dl::Tensor& tensor) {
  int64_t expected = 1;
  for (int32_t i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.shape[i] != 1 && tensor.strides && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

// A lazily conjugated or negated view: its memory does not hold its values.
bool is_lazy(PyObject* tensor, dl::DataType dtype) {
  if (dtype.code == dl::kComplex && is_true(PyObject_CallOneArg(hooks.is_conj, tensor))) return true;
  return dtype.code != dl::kBool && is_true(PyObject_CallOneArg(hooks.is_neg, tensor));
}

class Call {
 public:
  Call(Site& site, ffi::CallFrame* frame, dl::Device device)
      : site_(site), frame_(frame), device_(device), loans_(site, frame, device, site.is_next_checked()) {}

  // False with a Python error set.
  bool run() {
    return matches_frame() && loans_.lend() && invoke() && read_results() && copy_results() && loans_.check_operands();
  }

  // Lets go of all tensors. False if one of them outlives the call and may not, with a Python error set.
  bool finish(bool has_failed) {
    bool is_first = !site_.called.load(std::memory_order_relaxed);
    for (Result& result : results_) {
      if (is_first && site_.may_keep_results && result.tensor) loans_.watch_result(result.tensor);
      Py_XDECREF(result.tensor);
    }
    Py_XDECREF(answer_);
    if (!has_failed) site_.calls.fetch_add(1, std::memory_order_relaxed);
    return loans_.settle(has_failed);
  }

 private:
  struct Result {
    PyObject* tensor = nullptr;
    char* source = nullptr;
    enum { kInPlace, kCopyBytes, kCopyTogether, kCopyInTorch } how = kInPlace;
  };

  ffi::Buffer* result_buffer(size_t i) const { return frame_->rets.buffers[i]; }

  // A program from another process may have been compiled for another signature than the registered one.
  bool matches_frame() {
    bool same = frame_->args.size == static_cast<int64_t>(site_.operands.size()) &&
                frame_->rets.size == static_cast<int64_t>(site_.results.size());
    for (size_t i = 0; same && i < site_.operands.size(); ++i) same = fits(site_.operands[i], frame_->args.buffers[i]);
    for (size_t i = 0; same && i < site_.results.size(); ++i) same = fits(site_.results[i], result_buffer(i));
    if (!same) PyErr_SetString(PyExc_RuntimeError, "the compiled program does not fit the signature it names");
    return same;
  }
  static bool fits(const Operand& operand, const ffi::Buffer* buffer) {
    return buffer->rank == operand.tensor.ndim &&
           std::equal(buffer->dims, buffer->dims + buffer->rank, operand.tensor.shape);
  }

  bool invoke() {
    answer_ =
        PyObject_Vectorcall(site_.target, loans_.tensors(), loans_.size() | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
    return answer_ != nullptr;
  }

  // First pass over the results: everything is checked before the first byte is written.
  bool read_results() {
    size_t n = site_.results.size();
    if (site_.single ? !PyObject_TypeCheck(answer_, reinterpret_cast<PyTypeObject*>(hooks.tensor_type))
                     : !PyTuple_Check(answer_) || PyTuple_GET_SIZE(answer_) != static_cast<Py_ssize_t>(n)) {
      Py_XDECREF(PyObject_CallFunctionObjArgs(hooks.check_results, site_.label, answer_, nullptr));
      return false;
    }
    results_.resize(n);
    for (size_t i = 0; i < n; ++i)
      if (!read_result(i, site_.single ? answer_ : PyTuple_GET_ITEM(answer_, i))) return false;
    return true;
  }

  bool read_result(size_t i, PyObject* tensor) {
    Result& result = results_[i];
    const Operand& wanted = site_.results[i];
    result.tensor = Py_NewRef(tensor);
    dl::Tensor found{};
    PyObject* capsule = nullptr;
    bool regular = is_torch_type(tensor) && describe(tensor, &found, &capsule) && is_wanted(found, wanted);
    char* source = static_cast<char*>(found.data) + found.byte_offset;
    bool plain = regular && (wanted.bytes == 0 || (is_contiguous(found) && !is_lazy(tensor, found.dtype)));
    Py_XDECREF(capsule);
    PyErr_Clear();
    if (!regular) {  // the hook raises, or answers a tensor that `copy_` can take
      PyObject* mended = PyObject_CallFunction(hooks.check_output, "OnOii", site_.label, static_cast<Py_ssize_t>(i),
                                               tensor, static_cast<int>(device_.type), static_cast<int>(device_.id));
      if (!mended) return false;
      Py_SETREF(result.tensor, mended);
      source = nullptr;
    }
    if (wanted.bytes == 0) return true;
    result.source = source;
    if (plain && source == result_buffer(i)->data) {
      result.how = Result::kInPlace;
    } else if (plain && device_.type == dl::kCPU && wanted.bytes < kCopyInTorch) {
      result.how = Result::kCopyBytes;
    } else if (plain && device_.type != dl::kCPU && wanted.bytes < kCopyAlone) {
      result.how = Result::kCopyTogether;
    } else {
      result.how = Result::kCopyInTorch;
    }
    return !site_.may_overlap || result.how == Result::kInPlace || detach_from_results(&result);
  }

  bool is_wanted(const dl::Tensor& found, const Operand& wanted) const {
    const dl::Tensor& want = wanted.tensor;
    return found.dtype.code == want.dtype.code && found.dtype.bits == want.dtype.bits && found.ndim == want.ndim &&
           std::equal(want.shape, want.shape + want.ndim, found.shape) && (found.data || wanted.bytes == 0) &&
           found.device.type == device_.type && (device_.type == dl::kCPU || found.device.id == device_.id);
  }

  // A source inside a result buffer would be overwritten before it is read: copy it away first.
  bool detach_from_results(Result* result) {
    for (size_t j = 0; j < site_.results.size(); ++j) {
      char* start = static_cast<char*>(result_buffer(j)->data);
      if (result->source && (result->source < start || result->source >= start + site_.results[j].bytes)) continue;
      PyObject* copy = PyObject_CallOneArg(hooks.clone, result->tensor);
      if (!copy) return false;
      Py_SETREF(result->tensor, copy);
      result->how = Result::kCopyInTorch;
      return true;
    }
    return true;
  }

  bool copy_results() {
    std::vector<size_t> together;
    for (size_t i = 0; i < results_.size(); ++i) {
      Result& result = results_[i];
      void* data = result_buffer(i)->data;
      if (result.how == Result::kCopyBytes) std::memcpy(data, result.source, site_.results[i].bytes);
      if (result.how == Result::kCopyTogether) together.push_back(i);
      if (result.how == Result::kCopyInTorch && !copy_in_torch(i)) return false;
    }
    return together.size() == 1 ? copy_in_torch(together[0]) : together.empty() || copy_together(together);
  }

  bool copy_in_torch(size_t i) {
    PyObject* destination = loans_.lend_result(i);
    if (!destination) return false;
    PyObject* done = PyObject_CallFunctionObjArgs(hooks.copy, destination, results_[i].tensor, nullptr);
    Py_DECREF(destination);
    Py_XDECREF(done);
    return done != nullptr;
  }

  bool copy_together(const std::vector<size_t>& indices) {
    PyObject *destinations = PyList_New(0), *sources = PyList_New(0);
    bool ok = destinations && sources;
    for (size_t i = 0; ok && i < indices.size(); ++i) {
      PyObject* destination = loans_.lend_result(indices[i]);
      ok = destination && PyList_Append(destinations, destination) == 0 &&
           PyList_Append(sources, results_[indices[i]].tensor) == 0;
      Py_XDECREF(destination);
    }
    PyObject* done = ok ? PyObject_CallFunctionObjArgs(hooks.copy_all, destinations, sources, nullptr) : nullptr;
    Py_XDECREF(destinations);
    Py_XDECREF(sources);
    Py_XDECREF(done);
    return done != nullptr;
  }

  Site& site_;
  ffi::CallFrame* frame_;
  dl::Device device_;
  Loans loans_;
  PyObject* answer_ = nullptr;
  std::vector<Result> results_;
};

}  // namespace

ffi::Error* call_site(Site& site, ffi::CallFrame* frame, dl::Device device) {
  Call call(site, frame, device);
  bool ok = call.run();
  ffi::Error* error =
      ok ? nullptr : take_python_error(frame->api, site.label);  // before `finish`: a traceback's frames
  if (!call.finish(!ok) && ok)
    error = take_python_error(frame->api, site.label);  // hold arguments, and this clears them
  return error;
}

ffi::Error* take_python_error(const ffi::Api* api, PyObject* label) {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  if (value && trace) PyException_SetTraceback(value, trace);
  PyObject* report =
      PyObject_CallFunction(hooks.report, "OOi", label ? label : Py_None, value ? value : Py_None, call_depth());
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(trace);
  int code = ffi::kInternal;
  const char* message = "the torch function raised, and the error could not be reported";
  if (report && !PyArg_ParseTuple(report, "is", &code, &message)) PyErr_Clear();
  if (!report && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) code = ffi::kCancelled;  // it came in the hook itself
  interrupted |= code == ffi::kCancelled;
  PyErr_Clear();
  ffi::Error* error = ffi::make_error(api, static_cast<ffi::ErrorCode>(code), message);
  Py_XDECREF(report);
  return error;
}

void raise_interrupt() {
  if (interrupted) PyErr_SetInterrupt();
  interrupted = false;
}

}  // namespace t2j
