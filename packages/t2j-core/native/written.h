// Finds operands that the function has written. A part of `Loans`, on the thread of the call, with the GIL held.
//
// In a checked call an operand is copied first, and the copy is compared with the original afterwards. Where there is
// no room for a copy, a digest of the operand tells whether it was written. In any call torch's version counter tells
// of in-place operations. A GPU compares while the host goes on; a later call of the site reads the result.
#pragma once
#include <vector>

#include "lender.h"
#include "site.h"

namespace t2j {

class Written {
 public:
  Written(Site& site, Lender& lender, bool is_checked) : site_(site), lender_(lender), is_checked_(is_checked) {}
  ~Written();

  // Reports what the comparisons of earlier calls have shown, as far as the GPU has come. All of them are read, also
  // after an error. False with the first Python error set.
  bool read_comparisons();

  bool is_checked() const { return is_checked_; }
  void begin();  // before the first `guard`

  // What the function gets in the place of a borrowed operand in a checked call: a private copy, whose memory is then
  // in `storage`; or the operand itself, of which a digest is kept. Null with a Python error set.
  Ref guard(size_t operand, Ref original, Ref* storage);

  bool has_copies() const { return reserved_ > 0; }

  // Whether the function got a private copy.
  bool is_private(size_t operand) const { return is_checked_ && checked_[operand].original; }

  // After a call that succeeded: reports the operands that were written. `tensors` are those that the function got.
  // False with a Python error set.
  bool check(PyObject* const* tensors);

  void clear() { checked_.clear(); }  // drops all tensors

 private:
  struct Checked {  // all null for an operand that is not borrowed
    Ref original;   // the tensor over XLA's buffer, beside a private copy
    Ref storage;    // of the private copy
    Ref digest;     // of the operand, where there was no room for a copy
  };

  // A GPU compares later from the fourth call on. The calls before wait: no memory has been lent before them.
  bool compares_later() const { return lender_.is_on_gpu() && site_.has_lent(); }
  bool has_changed(size_t operand, PyObject* tensor, Ref* to_compare, bool* changed);
  bool compare(size_t operand, const Ref& first, const Ref& second, Ref* to_compare, bool* changed);
  bool report_differing(PyObject* operands);
  bool report(size_t operand, bool is_private, bool has_lent);

  Site& site_;
  Lender& lender_;
  bool is_checked_;
  std::vector<Checked> checked_;  // one for each operand in a checked call, else none
  int64_t reserved_ = 0;          // bytes of private copies
};

}  // namespace t2j
