// Finds memory that outlives its call, because something still refers to it, and moves it off XLA's buffers. A part of
// `Loans`, on the thread of the call, with the GIL held except while it waits for threads of torch's autograd.
//
// Tensors that are dropped cannot be found any more. So their storages are noted before, and looked at afterwards.
#pragma once
#include <vector>

#include "lender.h"
#include "site.h"

namespace t2j {

class Kept {
 public:
  // What a storage was lent as: XLA's memory of an operand or a result, a private copy of an operand, or memory of the
  // function's own that it returned.
  enum Kind { kOperand, kPrivate, kResult, kOwnResult };

  Kept(Site& site, Lender& lender) : site_(site), lender_(lender) {}

  // Notes a storage, or that of a tensor. False with a Python error set.
  void note(Kind kind, size_t index, Ref storage) { held_.push_back({kind, index, std::move(storage)}); }
  bool note_tensor(Kind kind, size_t index, PyObject* tensor);

  // After all tensors are dropped: moves XLA's memory that is still referred to, and reports what is kept. False with a
  // Python error set, unless `has_failed`: then the call has an error already.
  bool settle(bool has_failed);
  void clear() { held_.clear(); }

 private:
  struct Held {
    Kind kind;
    size_t index;
    Ref storage;
  };

  bool is_held(const Held& held) const;
  void drop_unheld();
  void wait_for_other_threads();
  bool move(const Held& held);
  bool move_all();
  void collect_garbage();
  bool is_among_held(Kind kind, size_t index) const;
  bool report_kept();
  bool report_lost();

  Site& site_;
  Lender& lender_;
  std::vector<Held> held_;
};

}  // namespace t2j
