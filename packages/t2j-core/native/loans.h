// The tensors over XLA's memory that one call hands out, and what is done about those that are written or kept.
#pragma once
#include <Python.h>

#include <vector>

#include "borrow.h"
#include "site.h"

namespace t2j {

// How many bytes all running calls may hold in private copies of operands that are checked.
extern int64_t most_checked_bytes;

// Belongs to one call, whose thread holds the GIL in every method.
//
// Most calls get tensors over XLA's own buffers. In a checked call an operand is copied first, and the copy is compared
// with the original afterwards, so that a function that writes or keeps its arguments harms nobody. It gets copies from
// then on. Where there is no room for a copy, a digest of the operand tells whether it was written.
class Loans {
 public:
  Loans(Site& site, ffi::CallFrame* frame, dl::Device device, bool is_checked)
      : site_(site), frame_(frame), device_(device), is_checked_(is_checked) {}
  ~Loans();

  // One tensor for each operand, and for each result if the site passes them. False with a Python error set.
  bool lend();
  PyObject* const* tensors() const { return tensors_.data() + 1; }  // the element before it may be overwritten
  size_t size() const { return tensors_.size() - 1; }

  // A new tensor over the memory of a result. Null with a Python error set.
  PyObject* lend_result(size_t i);

  // Looks for operands that the function has written. False with a Python error set.
  bool check_operands();

  // Notes a result that is the function's own: one that it keeps may not be redirected later.
  void watch_result(PyObject* tensor);

  // Drops all tensors, and moves memory that outlives the call. False with a Python error set, unless `has_failed`.
  bool settle(bool has_failed);

 private:
  struct Checked {                 // all null for an operand that is not checked
    PyObject* original = nullptr;  // the tensor over XLA's buffer, beside a private copy
    PyObject* storage = nullptr;   // of the private copy; `held_` owns it
    PyObject* digest = nullptr;    // of the operand, where there was no room for a copy
  };
  struct Held {
    enum Kind { kOperand, kPrivate, kResult, kOwnResult } kind;
    size_t index;
    PyObject* storage;
  };

  PyObject* lend_operand(size_t i);
  PyObject* checked_copy(size_t i, PyObject* original);
  bool check_operand(size_t i);
  bool is_changed(size_t i, bool* changed);
  bool is_same(size_t i, PyObject* first, PyObject* second, bool* same);
  bool compare_later();
  bool read_comparisons();
  bool tell_differing(PyObject* operands);
  bool tell_written(size_t i, bool is_private, bool has_lent);
  void copy_from_now_on(size_t operand);
  PyObject* new_digest(size_t i);

  // A GPU compares while the host goes on. The first two calls wait, before any memory has been lent.
  bool compares_later() const { return device_.type != dl::kCPU && site_.has_lent(); }
  bool is_lent() const {
    return (borrows_ && borrows_->alive() > 0) || (result_borrows_ && result_borrows_->alive() > 0);
  }
  bool note_holder(Held::Kind kind, size_t index, PyObject* tensor);
  void note_holders();
  bool is_held(const Held& held) const;
  void drop_unheld();
  void wait_for_other_threads();
  bool move(const Held& held);
  bool move_all();
  void collect_garbage();
  bool report_kept();
  bool none_lost();
  bool settle_held(bool has_failed);

  Site& site_;
  ffi::CallFrame* frame_;
  dl::Device device_;
  bool is_checked_;
  Borrows* borrows_ = nullptr;
  Borrows* result_borrows_ = nullptr;
  std::vector<PyObject*> tensors_;
  std::vector<Checked> checked_;  // one for each operand in a checked call, else none
  std::vector<Held> held_;
  PyObject* to_compare_ = nullptr;  // what the hook `compare_later` takes, where a GPU compares later
  int64_t reserved_ = 0;
};

}  // namespace t2j
