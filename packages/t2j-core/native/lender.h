// Lends the buffers of one call frame to torch: makes a tensor over one when it is asked for. A part of `Loans`, on the
// thread on which XLA runs the call, with the GIL held. The handler has called `check_frame` before: nothing here
// compares a buffer, and a tensor of the wrong size would read or write memory of others. Methods throw nothing; those
// that fail set a Python error.
#pragma once
#include "borrow.h"
#include "placement.h"
#include "site.h"

namespace t2j {

class Lender {
 public:
  Lender(const Site& site, const ffi::CallFrame* frame, dl::Device device)
      : site_(site), frame_(frame), device_(device), placement_(site, *frame) {}

  // Makes room for `capacity` tensors over operands. False with a Python error set.
  bool open(size_t capacity) {
    operands_.reset(Borrows::open(capacity));
    if (!operands_) PyErr_NoMemory();
    return operands_ != nullptr;
  }

  Handover handover(size_t i) const { return placement_.handover(i); }  // of an operand, in this call

  // A new tensor over an operand or a result. Null with a Python error set. The first tensors must be those of the
  // operands, in order, and then those of the results: `is_lent` and `storage` count on it.
  Ref operand(size_t i) { return operands_->lend(site_.operands[i], frame_->args.buffers[i]->data, device_); }
  Ref result(size_t i) {
    // Twice: the function may get a tensor over each result, and the copy of a result needs another.
    if (!results_) results_.reset(Borrows::open(2 * site_.results.size()));
    if (!results_) return Ref::steal(PyErr_NoMemory());
    return results_->lend(site_.results[i], frame_->rets.buffers[i]->data, device_);
  }

  // Whether the memory of the first tensor over this operand or result is still referred to.
  bool is_lent(bool is_result, size_t i) const { return (is_result ? results_ : operands_)->is_alive(i); }
  // The `StorageImpl` of that tensor when it was lent, or null.
  const void* storage(bool is_result, size_t i) const { return (is_result ? results_ : operands_)->storage(i); }

  // Whether any lent memory is still referred to.
  bool is_any_lent() const { return (operands_ && operands_->any_alive()) || (results_ && results_->any_alive()); }

  void close() {
    operands_.reset();
    results_.reset();
  }

  bool is_on_gpu() const { return device_.type != dl::kCPU; }

 private:
  const Site& site_;
  const ffi::CallFrame* frame_;
  dl::Device device_;
  Placement placement_;
  OwnBorrows operands_, results_;
};

}  // namespace t2j
