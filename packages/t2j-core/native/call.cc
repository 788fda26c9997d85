// One call of a torch function; see `call.h`. Runs on the thread of the call, with the GIL held. The methods of `Call`
// return false with a Python error set; `run_call` turns that into an error of XLA. No byte of a result buffer may be
// written before every result has been read: the buffers may hold what results are made of.
#include "call.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "errors.h"
#include "hooks.h"
#include "loans.h"

namespace t2j {

namespace {

// `copy_` runs on several threads and without the GIL; below this size its overhead is larger than the copy.
constexpr int64_t kCopyInTorch = 1 << 17;

// On a GPU, results below this size are copied together: for small ones a launch takes longer than the copy.
constexpr int64_t kCopyAlone = 1 << 20;

bool is_torch_type(PyObject* object) {
  return Py_IS_TYPE(object, hooks.tensor_type.type) || Py_IS_TYPE(object, hooks.parameter_type.type);
}

// The memory of a tensor, read without copying. On torch before 2.10 `capsule` owns the shape and strides in `out`.
bool describe(PyObject* tensor, dl::Tensor* out, Ref* capsule) {
  if (hooks.exchange) return hooks.exchange->borrow_from_object(tensor, out) == 0;
  *capsule = hooks.to_dlpack(tensor);
  void* managed = *capsule ? PyCapsule_GetPointer(capsule->get(), "dltensor") : nullptr;
  if (managed) *out = static_cast<dl::Managed*>(managed)->tensor;
  return managed != nullptr;
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
  if (dtype.code == dl::kComplex && is_true(hooks.is_conj(tensor))) return true;
  return dtype.code != dl::kBool && is_true(hooks.is_neg(tensor));
}

class Call {
 public:
  Call(Site& site, ffi::CallFrame* frame, dl::Device device)
      : site_(site), frame_(frame), device_(device), loans_(site, frame, device, site.is_next_checked()) {}

  // False with a Python error set.
  bool run() { return loans_.lend() && invoke() && read_results() && copy_results() && loans_.check_operands(); }

  // Whether it has failed, with a Python error set, because copies of operands take the memory of a GPU that it needs.
  bool lacks_room() const {
    auto* out_of_memory = reinterpret_cast<PyObject*>(hooks.out_of_memory_error.type);
    return device_.type != dl::kCPU && loans_.has_copies() && PyErr_ExceptionMatches(out_of_memory);
  }

  // Drops all tensors. False if one of them outlives the call and may not, with a Python error set.
  bool finish(bool has_failed) {
    bool is_first = !site_.called.load(std::memory_order_relaxed);
    if (is_first && site_.may_keep_results) {
      for (const Result& result : results_)
        if (result.tensor) loans_.watch_result(result.tensor.get());
    }
    results_.clear();
    returned_ = Ref();
    if (!has_failed) site_.calls.fetch_add(1, std::memory_order_relaxed);
    return loans_.settle(has_failed);
  }

 private:
  struct Result {
    Ref tensor;
    char* source = nullptr;
    enum { kInPlace, kCopyBytes, kCopyTogether, kCopyInTorch } how = kInPlace;
  };

  ffi::Buffer* result_buffer(size_t i) const { return frame_->rets.buffers[i]; }

  bool invoke() {
    const Arguments& tensors = loans_.tensors();
    returned_ = Ref::steal(PyObject_Vectorcall(site_.target.get(), tensors.data(),
                                               tensors.size() | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
    return static_cast<bool>(returned_);
  }

  // First pass over the results: everything is checked before the first byte is written.
  bool read_results() {
    PyObject* returned = returned_.get();
    size_t n = site_.results.size();
    if (site_.returns_tensor ? !PyObject_TypeCheck(returned, hooks.tensor_type.type)
                             : !PyTuple_Check(returned) || PyTuple_GET_SIZE(returned) != static_cast<Py_ssize_t>(n)) {
      hooks.refuse_results(site_.signature, returned);
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_SystemError, "the hook `refuse_results` did not raise");
      return false;
    }
    results_.resize(n);
    for (size_t i = 0; i < n; ++i)
      if (!read_result(i, site_.returns_tensor ? returned : PyTuple_GET_ITEM(returned, i))) return false;
    return true;
  }

  bool read_result(size_t i, PyObject* tensor) {
    Result& result = results_[i];
    const Operand& wanted = site_.results[i];
    bool is_plain = false;
    if (reads_as(wanted, tensor, &result.source, &is_plain)) {
      result.tensor = Ref::borrow(tensor);
    } else {  // the hook raises, or returns a tensor that `copy_` can take
      result.tensor = hooks.check_output(site_.signature, i, tensor, device_.type, device_.id);
      if (!result.tensor) return false;
    }
    if (wanted.bytes == 0) return true;
    result.how = how_to_copy(result.source, is_plain, result_buffer(i)->data, wanted.bytes);
    return !site_.may_overlap || result.how == Result::kInPlace || detach_from_results(&result);
  }

  // Whether a result is a tensor as wanted, and where its memory is; also whether its bytes, in order, are its values.
  bool reads_as(const Operand& wanted, PyObject* tensor, char** source, bool* is_plain) const {
    dl::Tensor found{};
    Ref capsule;
    bool is_regular = is_torch_type(tensor) && describe(tensor, &found, &capsule) && is_wanted(found, wanted);
    if (is_regular && wanted.bytes > 0) {
      *source = static_cast<char*>(found.data) + found.byte_offset;
      *is_plain = is_contiguous(found) && !is_lazy(tensor, found.dtype);
    }
    PyErr_Clear();  // of `describe`: the hook `check_output` says what is wrong
    return is_regular;
  }

  decltype(Result::how) how_to_copy(const char* source, bool is_plain, const void* buffer, int64_t bytes) const {
    if (!is_plain) return Result::kCopyInTorch;
    if (source == buffer) return Result::kInPlace;
    if (device_.type == dl::kCPU) return bytes < kCopyInTorch ? Result::kCopyBytes : Result::kCopyInTorch;
    return bytes < kCopyAlone ? Result::kCopyTogether : Result::kCopyInTorch;
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
      result->tensor = hooks.clone(result->tensor);
      result->how = Result::kCopyInTorch;
      return static_cast<bool>(result->tensor);
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
    Ref destination = loans_.lend_result(i);
    return destination && hooks.copy(destination, results_[i].tensor);
  }

  bool copy_together(const std::vector<size_t>& indices) {
    Ref destinations = Ref::steal(PyList_New(0));
    Ref sources = Ref::steal(PyList_New(0));
    if (!destinations || !sources) return false;
    for (size_t i : indices) {
      Ref destination = loans_.lend_result(i);
      if (!destination || PyList_Append(destinations.get(), destination.get()) != 0 ||
          PyList_Append(sources.get(), results_[i].tensor.get()) != 0)
        return false;
    }
    return static_cast<bool>(hooks.copy_all(destinations, sources));
  }

  Site& site_;
  ffi::CallFrame* frame_;
  dl::Device device_;
  Loans loans_;
  Ref returned_;
  std::vector<Result> results_;
};

// Runs a call. Where it lacks the room for copies of operands, it returns no error, and `*lacks_room` is true.
ffi::Error* run_once(Site& site, ffi::CallFrame* frame, dl::Device device, bool* lacks_room) {
  Call call(site, frame, device);
  bool ok = call.run();
  *lacks_room = !ok && site.may_repeat && call.lacks_room();
  if (*lacks_room) {
    PyErr_Clear();  // the frames of its traceback hold what the function has allocated
    call.finish(true);
    return nullptr;
  }
  // Before `finish`: the frames of a traceback refer to arguments, and `take_python_error` clears them.
  ffi::Error* error = ok ? nullptr : take_python_error(frame->api, site.signature.get());
  bool has_settled = call.finish(!ok);
  if (ok && !has_settled) error = take_python_error(frame->api, site.signature.get());
  return error;
}

}  // namespace

ffi::Error* run_call(Site& site, ffi::CallFrame* frame, dl::Device device) {
  bool lacks_room = false;
  ffi::Error* error = run_once(site, frame, device, &lacks_room);
  if (!lacks_room) return error;
  site.has_room = false;  // from now on digests tell which operands were written
  return run_once(site, frame, device, &lacks_room);
}

}  // namespace t2j
