// The tensors that one call of a torch function gets, and what is done about those that it writes or keeps.
//
// Belongs to one call, on the thread on which XLA runs it, with the GIL held in every method. Most calls get tensors
// over XLA's own buffers. In a checked call the function gets private copies of operands (see `written.h`), so that one
// that writes or keeps its arguments harms nobody. It gets copies at every call from then on.
#pragma once
#include <Python.h>

#include <vector>

#include "kept.h"
#include "lender.h"
#include "site.h"
#include "written.h"

namespace t2j {

// Owns the arguments of a call. They are raw pointers, with one free element before the first, because
// `PyObject_Vectorcall` takes them so.
class Arguments {
 public:
  Arguments() = default;
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;
  ~Arguments() { clear(); }

  void reserve(size_t n) {
    items_.reserve(n + 1);
    items_.push_back(nullptr);
  }
  void push(Ref item) { items_.push_back(item.release()); }  // after `reserve`, which has made room
  size_t size() const { return items_.empty() ? 0 : items_.size() - 1; }
  PyObject* operator[](size_t i) const { return items_[i + 1]; }
  PyObject* const* data() const { return items_.data() + 1; }
  void clear() {
    for (size_t i = 1; i < items_.size(); ++i) Py_DECREF(items_[i]);
    items_.clear();
  }

 private:
  std::vector<PyObject*> items_;
};

class Loans {
 public:
  Loans(Site& site, ffi::CallFrame* frame, dl::Device device, bool is_checked)
      : site_(site), lender_(site, frame, device), written_(site, lender_, is_checked), kept_(site, lender_) {}

  // One tensor for each operand, and for each result if the site passes them. False with a Python error set.
  bool lend();
  const Arguments& tensors() const { return tensors_; }

  // A new tensor over the memory of a result. Null with a Python error set.
  Ref lend_result(size_t i) { return lender_.result(i); }

  // Whether private copies of operands take memory.
  bool has_copies() const { return written_.has_copies(); }

  // Reports operands that the function has written. False with a Python error set.
  bool check_operands() { return written_.check(tensors_.data()); }

  // Notes a result that is the function's own: if the function keeps it, it may not be redirected later.
  void watch_result(PyObject* tensor);

  // Drops all tensors, and moves memory that outlives the call. False with a Python error set, unless `has_failed`.
  bool settle(bool has_failed);

 private:
  Ref lend_operand(size_t i);
  void note_referenced();

  Site& site_;
  Lender lender_;
  Written written_;
  Kept kept_;
  Arguments tensors_;
};

}  // namespace t2j
