// One call site of a compiled program: the torch function and the prepared description of its operands and results.
#pragma once
#include <Python.h>

#include <atomic>
#include <memory>
#include <vector>

#include "dlpack.h"
#include "xla_ffi.h"

namespace t2j {

enum class Pass : uint8_t {
  kBorrow = 0,   // a tensor over XLA's buffer; must not be written
  kClone = 1,    // a private copy, because the function writes into it
  kMutable = 2,  // a tensor over a buffer that XLA aliases to a result
};

struct Operand {
  dl::Tensor tensor{};          // template: everything but data and device
  std::vector<int64_t> layout;  // shape, then strides
  int64_t bytes = 0;
  Pass pass = Pass::kBorrow;
  int cycles = 0;  // how often only the garbage collector let go of it
};

// Python objects the call path uses, set once by `setup` and never freed.
struct Hooks {
  const dl::ExchangeApi* exchange = nullptr;  // null: torch older than 2.10, capsules instead
  PyObject *tensor_type, *parameter_type, *from_dlpack, *to_dlpack, *is_conj, *is_neg, *clone, *copy, *copy_all,
      *storage, *storage_uses;
  getter version_getter = nullptr;  // C function behind `Tensor._version`, the counter of in-place changes
  void* version_closure = nullptr;
  PyObject* state_getters;  // functions that are all false while torch's thread-local state is the default
  PyObject *is_grad_enabled, *set_grad_enabled, *enter_state, *leave_state, *enter_stream, *leave_stream;
  PyObject *resolve, *check_output, *check_results, *report;
  PyObject *private_copy, *digest, *has_same_bits, *compare_later, *differing, *operand_written, *argument_kept,
      *operand_in_cycle, *movable_copy, *raise_escaped;
  PyObject *stop_redirecting, *collect_garbage;
};
extern Hooks hooks;

struct Site {
  PyObject* target = nullptr;   // called with one tensor per operand (and per result, if `pass_results`)
  PyObject* label = nullptr;    // for the hooks that word errors
  PyObject* lending = nullptr;  // for the hooks that learn how operands are to be handed over
  std::vector<Operand> operands, results;
  int64_t pair = -1;              // the number of the pair of calls it belongs to, in the program: see `current_pair`
  bool single = false;            // the target returns a tensor, not a tuple
  bool pass_results = false;      // the target is handed tensors over the result buffers
  bool may_keep_results = false;  // ... without its knowledge, so it may keep them
  bool may_overlap = false;       // a returned tensor may live in a result buffer
  bool checks_always = false;     // operands are checked in every call
  std::atomic<bool> called{false};
  std::atomic<uint64_t> calls{0};
  std::vector<PyObject*> comparisons;  // of operands with their copies that a GPU has not finished yet; under the GIL

  // Whether calls before this one have lent operands: the third is the first that does.
  bool has_lent() const { return !checks_always && calls.load(std::memory_order_relaxed) >= 3; }

  // Whether the operands of the next call are checked: of the calls 1, 2, 4, 8, ..., not counting those that fail.
  bool is_next_checked() {
    uint64_t number = calls.load(std::memory_order_relaxed) + 1;
    return checks_always || (number & (number - 1)) == 0;
  }

  // From what the `resolve` hook answers for the attributes of the frame. Null with a Python error set.
  static std::unique_ptr<Site> from_attributes(const ffi::Attrs& attrs);
  ~Site();  // needs the GIL
};

// False once the interpreter is closing: the GIL must not be taken any more.
bool python_is_alive();

extern std::atomic<int64_t> live_sites;

}  // namespace t2j
