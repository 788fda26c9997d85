// Lends the buffers of a call to torch, and settles what became of them; see `loans.h`. Runs on the thread of the call,
// with the GIL held. Tensors may be dropped only after `note_referenced`: what a dropped tensor shared its memory with
// cannot be found.
#include "loans.h"

#include "hooks.h"
#include "storage.h"

namespace t2j {

bool Loans::lend() {
  if (!written_.read_comparisons()) return false;
  size_t n = site_.operands.size(), m = site_.pass_results ? site_.results.size() : 0;
  if (!lender_.open(written_.is_checked() ? 2 * n : n)) return false;  // a digest takes a second tensor
  written_.begin();
  tensors_.reserve(n + m);
  for (size_t i = 0; i < n + m; ++i) {
    Ref tensor = i < n ? lend_operand(i) : lender_.result(i - n);
    if (!tensor) return false;
    tensors_.push(std::move(tensor));
  }
  return true;
}

Ref Loans::lend_operand(size_t i) {
  Ref tensor = lender_.operand(i);
  if (!tensor) return tensor;
  Handover handover = lender_.handover(i);
  if (handover == Handover::kClone) return hooks.clone(tensor);
  if (handover == Handover::kMutable || !written_.is_checked()) return tensor;
  Ref storage;
  Ref guarded = written_.guard(i, std::move(tensor), &storage);
  if (storage) kept_.note(Kept::kPrivate, i, std::move(storage));
  return guarded;
}

void Loans::watch_result(PyObject* tensor) {
  if (!kept_.note_tensor(Kept::kOwnResult, 0, tensor)) PyErr_Clear();  // a tensor without memory is not redirected
}

// Notes the memory of tensors that something else refers to. Once they are dropped it cannot be found.
void Loans::note_referenced() {
  size_t n = site_.operands.size();
  for (size_t i = 0; i < tensors_.size(); ++i) {
    bool is_result = i >= n;
    size_t index = is_result ? i - n : i;
    if (!lender_.is_lent(is_result, index)) continue;  // the function got a copy
    if (!is_result && written_.is_private(index)) continue;
    PyObject* tensor = tensors_[i];
    if (!storage::is_referenced_elsewhere(tensor)) continue;
    if (storage::of(tensor) != lender_.storage(is_result, index)) continue;  // the function gave it other memory
    if (!kept_.note_tensor(is_result ? Kept::kResult : Kept::kOperand, index, tensor)) PyErr_Clear();
  }
}

bool Loans::settle(bool has_failed) {
  note_referenced();
  tensors_.clear();
  written_.clear();
  bool ok = kept_.settle(has_failed);
  kept_.clear();
  lender_.close();
  return ok;
}

}  // namespace t2j
