// One call site of a compiled program: the torch function and the prepared description of its operands and results.
//
// Made by the handler from the attributes of a call frame: once for each executable that XLA instantiates (XLA owns it
// as the state of the call), or once for each call where XLA keeps no state. Several threads may run one site at the
// same time; they take turns by the GIL. What `check_frame` reads never changes, the rest changes under the GIL.
#pragma once
#include <Python.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "dlpack.h"
#include "ref.h"
#include "xla_ffi.h"

namespace t2j {

// How an operand is handed over. `_run/lending.py` has the same numbers.
enum class Handover : uint8_t {
  kBorrow = 0,   // a tensor over XLA's buffer; must not be written
  kClone = 1,    // a private copy, because the function writes into it
  kMutable = 2,  // a tensor over a buffer that XLA aliases to a result
};

struct Operand {
  dl::Tensor tensor{};          // template: everything but data and device
  std::vector<int64_t> layout;  // shape, then strides
  int32_t dtype = 0;            // XLA's
  int64_t bytes = 0;
  Handover handover = Handover::kBorrow;
  int cycles = 0;  // how often only the garbage collector freed it
};

// Where a site was warmed up. Torch makes the handles of libraries, such as cuBLAS, once for each thread and device.
class Warmth {
 public:
  bool is_warm(int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    return warm_.count({number_of_thread(), device}) > 0;
  }
  void set_warm(int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    warm_.insert({number_of_thread(), device});
  }

 private:
  // No thread after this one has its number.
  static uint64_t number_of_thread() {
    static std::atomic<uint64_t> threads{0};
    thread_local const uint64_t number = ++threads;
    return number;
  }

  std::mutex mutex_;
  std::set<std::pair<uint64_t, int>> warm_;
};

struct Site {
  Ref target;     // called with one tensor per operand (and per result, if `pass_results`)
  Ref signature;  // for the hooks that word errors
  Ref lending;    // for the hooks that learn how operands are to be handed over
  std::vector<Operand> operands, results;
  int64_t pair = -1;              // the number of the pair of calls it belongs to, in the program: see `current_pair`
  bool returns_tensor = false;    // the target returns a tensor, not a tuple
  bool pass_results = false;      // the target gets tensors over the result buffers
  bool may_keep_results = false;  // ... without its knowledge, so it may keep them
  bool may_overlap = false;       // a returned tensor may lie in a result buffer
  bool checks_always = false;     // operands are checked in every call
  bool is_captured = false;       // XLA may capture its calls, which are checked when it is warmed up, not when they run
  std::atomic<bool> takes_turns{false};  // see `turn.h`
  std::atomic<bool> called{false};
  Warmth warmth;  // of a site that may be captured
  std::atomic<uint64_t> calls{0};
  std::vector<Ref> comparisons;  // of operands with their copies, which a GPU has not finished yet
  bool may_repeat = false;       // a call that has failed may run once more
  bool has_room = true;          // no call has run out of memory because of its copies of operands

  Site();
  ~Site();  // needs the GIL
  Site(const Site&) = delete;
  Site& operator=(const Site&) = delete;

  // Whether calls before this one have lent operands: the third is the first that does.
  bool has_lent() const { return !checks_always && calls.load(std::memory_order_relaxed) >= 3; }

  // Whether the operands of the next call are checked: of the calls 1, 2, 4, 8, ..., not counting those that fail.
  bool is_next_checked() {
    if (is_captured) return false;
    uint64_t number = calls.load(std::memory_order_relaxed) + 1;
    return checks_always || (number & (number - 1)) == 0;
  }

  // Hands over copies of an operand from now on; not where the user asked for an error at every call.
  void copy_from_now_on(size_t operand) {
    if (!checks_always) operands[operand].handover = Handover::kClone;
  }

  // From the `CallSite` that the hook `resolve` returns for the attributes of a frame. Null with a Python error set.
  static std::unique_ptr<Site> from_attributes(const ffi::Attrs& attrs, bool is_captured = false);
};

extern std::atomic<int64_t> live_sites;

}  // namespace t2j
