// Where XLA has placed the operands and results of one call.
//
// An operand may lie in a result only where the program says so (`Handover::kMutable`), and there it must be the whole
// result. XLA on GPUs does not keep to it since jaxlib 0.11: it fuses a call with the slices that make its operands and
// the `dynamic-update-slice` that takes its result (computations named `dynamic-slice-fusion`). In `x.at[3].set(f(x[3]))`
// the result then lies on the operand, and in `f(x[3])` a mutable operand lies in `x` but the result does not.
//
// Belongs to one call, on its thread. Reads addresses only, so it needs no GIL.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "site.h"
#include "xla_ffi.h"

namespace t2j {

class Placement {
 public:
  Placement(const Site& site, const ffi::CallFrame& frame);

  // How an operand is handed over: as a copy, where XLA has placed it otherwise than the program says.
  Handover handover(size_t operand) const;

 private:
  bool is_result(uintptr_t begin, uintptr_t end) const;
  bool overlaps_result(uintptr_t begin, uintptr_t end) const;

  const Site& site_;
  const ffi::CallFrame& frame_;
  std::vector<std::pair<uintptr_t, uintptr_t>> results_;  // begin and end of each that is not empty, in order
};

}  // namespace t2j
