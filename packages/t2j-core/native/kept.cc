// Finds and moves memory that outlives its call; see `kept.h`. Runs on the thread of the call, with the GIL held. It
// releases the GIL only in `wait_for_other_threads`. No method keeps a reference of its own to a storage beyond
// `held_`: `is_held` counts references.
#include "kept.h"

#include <chrono>
#include <thread>
#include <utility>

#include "errors.h"
#include "hooks.h"
#include "storage.h"

namespace t2j {

namespace {

constexpr int kCyclesUntilCopy = 2;  // a copy costs less than a collection of garbage after every call

// For hooks whose failure changes nothing.
void ignore(const Ref& returned) {
  if (!returned) PyErr_Clear();
}

}  // namespace

bool Kept::note_tensor(Kind kind, size_t index, PyObject* tensor) {
  Ref storage = hooks.storage(tensor);
  if (!storage) return false;
  for (Held& held : held_) {
    if (held.storage.get() != storage.get()) continue;
    if (held.kind == kOwnResult) held = {kind, index, std::move(storage)};  // lent memory that is returned
    return true;
  }
  note(kind, index, std::move(storage));
  return true;
}

bool Kept::is_held(const Held& held) const {
  if (Py_REFCNT(held.storage.get()) > 1) return true;
  Ref uses = hooks.storage_uses(held.storage);
  long count = uses ? PyLong_AsLong(uses.get()) : 1;
  PyErr_Clear();
  return count > 1;
}

void Kept::drop_unheld() {
  std::vector<Held> rest;
  for (Held& held : held_)
    if (is_held(held)) rest.push_back(std::move(held));
  held_.swap(rest);
}

// Torch's autograd has a thread for each GPU, which drops the last gradient after the caller has it. Waiting decides
// only whether a copy is made that nobody needs, not whether a result is right.
void Kept::wait_for_other_threads() {
  constexpr int kShort = 20, kAll = 70;
  for (int i = 0; i < kAll && !held_.empty(); ++i) {
    PyThreadState* state = PyEval_SaveThread();
    std::this_thread::sleep_for(std::chrono::microseconds(i < kShort ? 1 : 100));
    PyEval_RestoreThread(state);
    drop_unheld();
  }
}

// Gives memory of XLA that outlives the call a place of its own. False with a Python error set where that cannot be.
bool Kept::move(const Held& held) {
  Ref copy = hooks.movable_copy(site_.lending, held.index, held.kind == kResult, held.storage);
  if (!copy) return false;
  storage::exchange_memory(held.storage.get(), copy.get());
  return true;  // `copy` now has XLA's memory, and frees what it was lent by
}

bool Kept::move_all() {
  FirstError error;
  for (const Held& held : held_) {
    if (held.kind == kPrivate || held.kind == kOwnResult || move(held)) continue;
    error.take();
    if (held.kind == kOperand) site_.copy_from_now_on(held.index);
    if (held.kind == kResult && site_.may_keep_results) ignore(hooks.stop_redirecting(site_.target));
  }
  return error.restore();
}

bool Kept::is_among_held(Kind kind, size_t index) const {
  for (const Held& held : held_)
    if (held.kind == kind && held.index == index) return true;
  return false;
}

// Where the garbage collector had to free an operand repeatedly, later calls copy it: a copy costs less.
void Kept::collect_garbage() {
  std::vector<std::pair<Kind, size_t>> before;
  for (const Held& held : held_) before.emplace_back(held.kind, held.index);
  ignore(hooks.collect_garbage());
  drop_unheld();
  for (auto [kind, index] : before) {
    if (kind != kPrivate && kind != kOperand) continue;
    if (is_among_held(kind, index) || ++site_.operands[index].cycles < kCyclesUntilCopy) continue;
    site_.copy_from_now_on(index);
    ignore(hooks.operand_in_cycle(site_.lending, index));
  }
}

// False with a Python error set, which is how the hooks refuse.
bool Kept::report_kept() {
  for (const Held& held : held_)
    if (held.kind == kOperand || held.kind == kPrivate) site_.copy_from_now_on(held.index);
  for (const Held& held : held_) {
    bool is_result = held.kind == kResult || held.kind == kOwnResult;
    bool is_late = held.kind == kPrivate && site_.has_lent();
    Ref done = is_result && site_.may_keep_results ? hooks.stop_redirecting(site_.target)
                                                   : hooks.argument_kept(site_.lending, held.index, is_result, is_late);
    if (!done) return false;
  }
  return true;
}

// For memory that is still lent though no noted storage has it: the function gave the tensor other memory, and keeps
// the lent one. It cannot be found, so it cannot be moved. False with a Python error set.
bool Kept::report_lost() { return !lender_.is_any_lent() || static_cast<bool>(hooks.raise_escaped(site_.lending)); }

bool Kept::settle(bool has_failed) {
  drop_unheld();
  if (held_.empty() && !lender_.is_any_lent()) return true;
  if (lender_.is_on_gpu()) wait_for_other_threads();
  bool has_moved = move_all();
  if (has_failed) {
    PyErr_Clear();
    return true;
  }
  if (!has_moved) return false;
  if (!held_.empty() || lender_.is_any_lent()) collect_garbage();
  return report_kept() && report_lost();
}

}  // namespace t2j
