#include "loans.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "storage.h"

namespace t2j {

int64_t most_checked_bytes = int64_t{1} << 30;

namespace {

std::atomic<int64_t> checked_bytes{0};

constexpr int kCyclesUntilCopy = 2;  // a copy costs less than a collection of garbage after every call

bool reserve(int64_t bytes) {
  if (checked_bytes.fetch_add(bytes) + bytes <= most_checked_bytes) return true;
  checked_bytes.fetch_sub(bytes);
  return false;
}

// Keeps the first of several Python errors while work goes on.
class FirstError {
 public:
  // Takes the error that is set.
  void take() {
    if (type_) {
      PyErr_Clear();
    } else {
      PyErr_Fetch(&type_, &value_, &trace_);
    }
  }
  // False with the first error set, if there was one.
  bool none() {
    if (!type_) return true;
    PyErr_Restore(type_, value_, trace_);
    return false;
  }

 private:
  PyObject *type_ = nullptr, *value_ = nullptr, *trace_ = nullptr;
};

// False with a Python error set if the call failed.
bool succeeded(PyObject* owned) {
  Py_XDECREF(owned);
  return owned != nullptr;
}

}  // namespace

Loans::~Loans() { checked_bytes.fetch_sub(reserved_); }

// --- before the call -------------------------------------------------------------------------------------------------

bool Loans::lend() {
  if (!site_.comparisons.empty() && !read_comparisons()) return false;
  size_t n = site_.operands.size(), m = site_.pass_results ? site_.results.size() : 0;
  borrows_ = Borrows::open(is_checked_ ? 2 * n : n);
  if (!borrows_) return succeeded(PyErr_NoMemory());
  if (is_checked_) checked_.resize(n);
  tensors_.reserve(n + m + 1);
  tensors_.push_back(nullptr);  // the slot that PY_VECTORCALL_ARGUMENTS_OFFSET offers to the callee
  for (size_t i = 0; i < n + m; ++i) {
    PyObject* tensor = i < n ? lend_operand(i) : lend_result(i - n);
    if (!tensor) return false;
    tensors_.push_back(tensor);
  }
  return true;
}

PyObject* Loans::lend_operand(size_t i) {
  const Operand& operand = site_.operands[i];
  PyObject* tensor = borrows_->lend(operand, frame_->args.buffers[i]->data, device_);
  if (!tensor) return nullptr;
  if (operand.pass == Pass::kClone) {
    PyObject* copy = PyObject_CallOneArg(hooks.clone, tensor);
    Py_DECREF(tensor);
    return copy;
  }
  return is_checked_ && operand.pass == Pass::kBorrow ? checked_copy(i, tensor) : tensor;
}

PyObject* Loans::checked_copy(size_t i, PyObject* original) {
  int64_t bytes = site_.operands[i].bytes;
  bool has_room = reserve(bytes);
  if (has_room) reserved_ += bytes;
  PyObject* copy = has_room ? PyObject_CallOneArg(hooks.private_copy, original) : Py_NewRef(Py_None);
  if (copy == Py_None) {
    Py_DECREF(copy);
    checked_[i].digest = PyObject_CallOneArg(hooks.digest, original);
    if (!checked_[i].digest) Py_CLEAR(original);
    return original;
  }
  checked_[i].original = original;
  PyObject* storage = copy ? PyObject_CallOneArg(hooks.storage, copy) : nullptr;
  if (!storage) return Py_XDECREF(copy), nullptr;
  held_.push_back({Held::kPrivate, i, storage});
  checked_[i].storage = storage;
  return copy;
}

PyObject* Loans::lend_result(size_t i) {
  if (!result_borrows_) result_borrows_ = Borrows::open(2 * site_.results.size());
  if (!result_borrows_) return PyErr_NoMemory();
  return result_borrows_->lend(site_.results[i], frame_->rets.buffers[i]->data, device_);
}

// --- after a call that succeeded -------------------------------------------------------------------------------------

bool Loans::check_operands() {
  for (size_t i = 0; i < site_.operands.size(); ++i)
    if (site_.operands[i].pass == Pass::kBorrow && !check_operand(i)) return false;
  return !to_compare_ || compare_later();
}

bool Loans::check_operand(size_t i) {
  bool changed = false;
  if (!is_changed(i, &changed)) return false;
  if (!changed) return true;
  return tell_written(i, is_checked_ && checked_[i].original, site_.has_lent());
}

bool Loans::tell_written(size_t i, bool is_private, bool has_lent) {
  copy_from_now_on(i);
  return succeeded(PyObject_CallFunction(hooks.operand_written, "OnOO", site_.lending, static_cast<Py_ssize_t>(i),
                                         is_private ? Py_True : Py_False, has_lent ? Py_True : Py_False));
}

bool Loans::is_changed(size_t i, bool* changed) {
  PyObject* version = hooks.version_getter(tensors_[i + 1], hooks.version_closure);
  if (!version) return false;
  *changed = PyLong_AsLong(version) != 0;
  Py_DECREF(version);
  if (*changed || !is_checked_) return true;
  const Checked& checked = checked_[i];
  PyObject* digest = checked.digest ? new_digest(i) : nullptr;
  if (checked.digest && !digest) return false;
  bool same = true;
  bool ok = digest ? is_same(i, digest, checked.digest, &same) : is_same(i, checked.original, checked.storage, &same);
  Py_XDECREF(digest);
  *changed = !same;
  return ok;
}

// Made through a tensor of its own: the function may have given the other one different memory.
PyObject* Loans::new_digest(size_t i) {
  PyObject* tensor = borrows_->lend(site_.operands[i], frame_->args.buffers[i]->data, device_);
  PyObject* digest = tensor ? PyObject_CallOneArg(hooks.digest, tensor) : nullptr;
  Py_XDECREF(tensor);
  return digest;
}

bool Loans::is_same(size_t i, PyObject* first, PyObject* second, bool* same) {
  if (!compares_later()) {
    PyObject* found = PyObject_CallFunctionObjArgs(hooks.has_same_bits, first, second, nullptr);
    *same = found == Py_True;
    return succeeded(found);
  }
  if (!to_compare_) to_compare_ = PyList_New(0);
  PyObject* is_private = checked_[i].original ? Py_True : Py_False;
  PyObject* item = to_compare_ ? Py_BuildValue("nOOO", static_cast<Py_ssize_t>(i), is_private, first, second) : nullptr;
  bool ok = item && PyList_Append(to_compare_, item) == 0;
  Py_XDECREF(item);
  return ok;
}

bool Loans::compare_later() {
  PyObject* comparison = PyObject_CallOneArg(hooks.compare_later, to_compare_);
  if (comparison) site_.comparisons.push_back(comparison);
  return comparison != nullptr;
}

// Learns what the comparisons of earlier calls have shown, as far as the GPU has come: all of it, also where an error
// is set, which is the first.
bool Loans::read_comparisons() {
  std::vector<PyObject*> comparisons;
  comparisons.swap(site_.comparisons);  // the hooks may let another call of this site run
  FirstError error;
  for (PyObject* comparison : comparisons) {
    PyObject* operands = PyObject_CallOneArg(hooks.differing, comparison);
    if (operands == Py_None) site_.comparisons.push_back(Py_NewRef(comparison));
    if (!operands || (operands != Py_None && !tell_differing(operands))) error.take();
    Py_XDECREF(operands);
    Py_DECREF(comparison);
  }
  return error.none();
}

// `operands` is a tuple of (operand, whether the call got a private copy of it).
bool Loans::tell_differing(PyObject* operands) {
  FirstError error;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(operands); ++i) {
    Py_ssize_t operand;
    int is_private;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(operands, i), "np", &operand, &is_private) ||
        !tell_written(operand, is_private, true))
      error.take();
  }
  return error.none();
}

// Not where the user asked for an error at every call.
void Loans::copy_from_now_on(size_t operand) {
  if (!site_.checks_always) site_.operands[operand].pass = Pass::kClone;
}

// --- letting go ------------------------------------------------------------------------------------------------------

bool Loans::note_holder(Held::Kind kind, size_t index, PyObject* tensor) {
  PyObject* storage = PyObject_CallOneArg(hooks.storage, tensor);
  if (!storage) return false;
  for (Held& held : held_) {
    if (held.storage != storage) continue;
    if (held.kind == Held::kOwnResult) held = {kind, index, storage};  // lent memory that is returned
    return Py_DECREF(storage), true;
  }
  held_.push_back({kind, index, storage});
  return true;
}

void Loans::watch_result(PyObject* tensor) {
  if (!note_holder(Held::kOwnResult, 0, tensor)) PyErr_Clear();  // a tensor without memory is not redirected
}

// Takes hold of the memory of tensors that something else refers to. Once they are dropped it cannot be found.
void Loans::note_holders() {
  size_t n = site_.operands.size();
  for (size_t i = 0; i + 1 < tensors_.size(); ++i) {
    Borrows* borrows = i < n ? borrows_ : result_borrows_;
    size_t index = i < n ? i : i - n;
    if (!borrows->is_alive(index)) continue;  // the function got a copy
    PyObject* tensor = tensors_[i + 1];
    bool is_private = i < n && is_checked_ && checked_[i].original;
    if (is_private || !storage::is_referenced_elsewhere(tensor)) continue;
    if (storage::of(tensor) != borrows->storage(index)) continue;  // the function has given it other memory
    if (!note_holder(i < n ? Held::kOperand : Held::kResult, index, tensor)) PyErr_Clear();
  }
}

bool Loans::is_held(const Held& held) const {
  if (Py_REFCNT(held.storage) > 1) return true;
  PyObject* uses = PyObject_CallOneArg(hooks.storage_uses, held.storage);
  long count = uses ? PyLong_AsLong(uses) : 1;
  Py_XDECREF(uses);
  PyErr_Clear();
  return count > 1;
}

void Loans::drop_unheld() {
  std::vector<Held> rest;
  for (const Held& held : held_) {
    if (is_held(held)) {
      rest.push_back(held);
    } else {
      Py_DECREF(held.storage);
    }
  }
  held_.swap(rest);
}

// A thread of torch's autograd, of which each GPU has one, lets go of the last gradient after the caller has it. This
// decides whether a copy is made that nobody needs, not whether a result is right.
void Loans::wait_for_other_threads() {
  constexpr int kShort = 20, kAll = 70;
  for (int i = 0; i < kAll && !held_.empty(); ++i) {
    PyThreadState* state = PyEval_SaveThread();
    std::this_thread::sleep_for(std::chrono::microseconds(i < kShort ? 1 : 100));
    PyEval_RestoreThread(state);
    drop_unheld();
  }
}

// Gives memory of XLA that outlives the call a place of its own. False with a Python error set where that cannot be.
bool Loans::move(const Held& held) {
  PyObject* copy = PyObject_CallFunction(hooks.movable_copy, "OnOO", site_.lending, static_cast<Py_ssize_t>(held.index),
                                         held.kind == Held::kResult ? Py_True : Py_False, held.storage);
  if (!copy) return false;
  storage::exchange_memory(held.storage, copy);
  Py_DECREF(copy);  // and with it what XLA's memory was lent by
  return true;
}

bool Loans::move_all() {
  FirstError error;
  for (const Held& held : held_) {
    if (held.kind == Held::kPrivate || held.kind == Held::kOwnResult || move(held)) continue;
    error.take();
    if (held.kind == Held::kOperand) copy_from_now_on(held.index);
    if (held.kind == Held::kResult && site_.may_keep_results)
      succeeded(PyObject_CallOneArg(hooks.stop_redirecting, site_.target));
    PyErr_Clear();
  }
  return error.none();
}

// Where the garbage collector had to free a tensor, the next calls rather pay for a copy than for a collection.
void Loans::collect_garbage() {
  std::vector<Held> before = held_;
  succeeded(PyObject_CallNoArgs(hooks.collect_garbage));
  PyErr_Clear();
  drop_unheld();
  for (const Held& held : before) {
    if (held.kind != Held::kPrivate && held.kind != Held::kOperand) continue;
    bool is_kept = false;
    for (const Held& other : held_) is_kept |= other.kind == held.kind && other.index == held.index;
    if (is_kept || ++site_.operands[held.index].cycles < kCyclesUntilCopy) continue;
    copy_from_now_on(held.index);
    succeeded(PyObject_CallFunction(hooks.operand_in_cycle, "On", site_.lending, static_cast<Py_ssize_t>(held.index)));
    PyErr_Clear();
  }
}

bool Loans::report_kept() {
  for (const Held& held : held_)
    if (held.kind == Held::kOperand || held.kind == Held::kPrivate) copy_from_now_on(held.index);
  for (const Held& held : held_) {
    bool is_result = held.kind == Held::kResult || held.kind == Held::kOwnResult;
    PyObject* done = is_result && site_.may_keep_results
                         ? PyObject_CallOneArg(hooks.stop_redirecting, site_.target)
                         : PyObject_CallFunction(hooks.argument_kept, "OnOO", site_.lending,
                                                 static_cast<Py_ssize_t>(held.index), is_result ? Py_True : Py_False,
                                                 held.kind == Held::kPrivate && site_.has_lent() ? Py_True : Py_False);
    if (!succeeded(done)) return false;
  }
  return true;
}

// What was lent lies in a tensor that the function has given other memory, so that it cannot be found.
bool Loans::none_lost() { return !is_lent() || succeeded(PyObject_CallOneArg(hooks.raise_escaped, site_.lending)); }

bool Loans::settle_held(bool has_failed) {
  if (device_.type != dl::kCPU) wait_for_other_threads();
  bool moved = move_all();
  if (has_failed) return PyErr_Clear(), true;
  if (!moved) return false;
  if (!held_.empty() || is_lent()) collect_garbage();
  return report_kept() && none_lost();
}

bool Loans::settle(bool has_failed) {
  Py_CLEAR(to_compare_);
  if (borrows_) note_holders();
  for (PyObject* tensor : tensors_) Py_XDECREF(tensor);
  for (const Checked& checked : checked_) {
    Py_XDECREF(checked.original);
    Py_XDECREF(checked.digest);
  }
  drop_unheld();
  bool ok = (held_.empty() && !is_lent()) || settle_held(has_failed);
  for (const Held& held : held_) Py_DECREF(held.storage);
  if (borrows_) borrows_->close();
  if (result_borrows_) result_borrows_->close();
  return ok;
}

}  // namespace t2j
