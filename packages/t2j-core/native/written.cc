// Finds operands that the function has written; see `written.h`. Runs on the thread of the call, with the GIL held.
// Hooks may release it, and then other calls of the same site run: `site_.comparisons` may change during each hook.
// Only the count of bytes in private copies is shared by all sites.
#include "written.h"

#include <atomic>

#include "errors.h"
#include "hooks.h"

namespace t2j {

namespace {

std::atomic<int64_t> checked_bytes{0};

// Counts the bytes of a private copy, unless all running calls would hold too many.
bool reserve(int64_t bytes) {
  if (checked_bytes.fetch_add(bytes) + bytes <= hooks.most_checked_bytes.value) return true;
  checked_bytes.fetch_sub(bytes);
  return false;
}

}  // namespace

Written::~Written() { checked_bytes.fetch_sub(reserved_); }

void Written::begin() {
  if (is_checked_) checked_.resize(site_.operands.size());
}

Ref Written::guard(size_t operand, Ref original, Ref* storage) {
  Checked& checked = checked_[operand];
  int64_t bytes = site_.operands[operand].bytes;
  bool has_room = site_.has_room && reserve(bytes);
  if (has_room) reserved_ += bytes;
  Ref copy = has_room ? hooks.private_copy(original) : Ref::borrow(Py_None);
  if (copy.get() == Py_None) {
    checked.digest = hooks.digest(original);
    return checked.digest ? std::move(original) : Ref();
  }
  checked.original = std::move(original);
  if (copy) checked.storage = hooks.storage(copy);
  if (!checked.storage) return Ref();
  *storage = Ref::borrow(checked.storage.get());
  return copy;
}

bool Written::check(PyObject* const* tensors) {
  Ref to_compare;  // a list for the hook `compare_later`, if a GPU compares later
  for (size_t i = 0; i < site_.operands.size(); ++i) {
    if (lender_.handover(i) != Handover::kBorrow) continue;
    bool changed = false;
    if (!has_changed(i, tensors[i], &to_compare, &changed)) return false;
    if (changed && !report(i, is_private(i), site_.has_lent())) return false;
  }
  if (!to_compare) return true;
  Ref comparison = hooks.compare_later(to_compare);
  if (!comparison) return false;
  site_.comparisons.push_back(std::move(comparison));
  return true;
}

// False with a Python error set.
bool Written::has_changed(size_t operand, PyObject* tensor, Ref* to_compare, bool* changed) {
  Ref version = hooks.version(tensor);
  if (!version) return false;
  *changed = PyLong_AsLong(version.get()) != 0;
  if (*changed || !is_checked_) return true;
  const Checked& checked = checked_[operand];
  if (!checked.digest) return compare(operand, checked.original, checked.storage, to_compare, changed);
  Ref again = lender_.operand(operand);  // the function may have given the tensor that it got other memory
  Ref digest = again ? hooks.digest(again) : Ref();
  return digest && compare(operand, digest, checked.digest, to_compare, changed);
}

// Compares now, or adds to the list of what is compared later. False with a Python error set.
bool Written::compare(size_t operand, const Ref& first, const Ref& second, Ref* to_compare, bool* changed) {
  if (!compares_later()) {
    Ref is_same = hooks.has_same_bits(first, second);
    *changed = is_same.get() != Py_True;
    return static_cast<bool>(is_same);
  }
  if (!*to_compare) *to_compare = Ref::steal(PyList_New(0));
  if (!*to_compare) return false;
  PyObject* is_copy = is_private(operand) ? Py_True : Py_False;
  Ref item = Ref::steal(Py_BuildValue("nOOO", static_cast<Py_ssize_t>(operand), is_copy, first.get(), second.get()));
  return item && PyList_Append(to_compare->get(), item.get()) == 0;
}

bool Written::read_comparisons() {
  if (site_.comparisons.empty()) return true;
  std::vector<Ref> comparisons;
  comparisons.swap(site_.comparisons);  // the hooks may let another call of this site run
  FirstError error;
  for (Ref& comparison : comparisons) {
    Ref operands = hooks.differing(comparison);
    if (operands.get() == Py_None) {
      site_.comparisons.push_back(std::move(comparison));
    } else if (!operands || !report_differing(operands.get())) {
      error.take();
    }
  }
  return error.restore();
}

// `operands` is a tuple of (operand, whether the call got a private copy of it). All of them are reported, also after
// an error. False with the first Python error set.
bool Written::report_differing(PyObject* operands) {
  FirstError error;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(operands); ++i) {
    Py_ssize_t operand;
    int is_private;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(operands, i), "np", &operand, &is_private) ||
        !report(operand, is_private, true))
      error.take();
  }
  return error.restore();
}

// False with a Python error set, which is how the hook refuses.
bool Written::report(size_t operand, bool is_private, bool has_lent) {
  site_.copy_from_now_on(operand);
  return static_cast<bool>(hooks.operand_written(site_.lending, operand, is_private, has_lent));
}

}  // namespace t2j
