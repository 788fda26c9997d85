// Compares the addresses of operands with those of results; see `placement.h`. Runs twice for each operand of each call,
// and takes a few nanoseconds. The constructor may throw `std::bad_alloc`, which the handler catches.
#include "placement.h"

#include <algorithm>
#include <iterator>

namespace t2j {

namespace {

std::pair<uintptr_t, uintptr_t> range_of(const ffi::Buffer& buffer, int64_t bytes) {
  auto begin = reinterpret_cast<uintptr_t>(buffer.data);
  return {begin, begin + static_cast<uintptr_t>(bytes)};
}

}  // namespace

Placement::Placement(const Site& site, const ffi::CallFrame& frame) : site_(site), frame_(frame) {
  results_.reserve(site.results.size());
  for (size_t i = 0; i < site.results.size(); ++i)
    if (int64_t bytes = site.results[i].bytes) results_.push_back(range_of(*frame.rets.buffers[i], bytes));
  std::sort(results_.begin(), results_.end());
}

Handover Placement::handover(size_t i) const {
  const Operand& operand = site_.operands[i];
  if (operand.handover == Handover::kClone) return Handover::kClone;
  auto [begin, end] = range_of(*frame_.args.buffers[i], operand.bytes);
  bool is_right = operand.handover == Handover::kMutable ? is_result(begin, end) : !overlaps_result(begin, end);
  return is_right ? operand.handover : Handover::kClone;
}

bool Placement::is_result(uintptr_t begin, uintptr_t end) const {
  return std::binary_search(results_.begin(), results_.end(), std::make_pair(begin, end));
}

// Results do not overlap each other, so only the last one that begins before `end` can reach beyond `begin`.
bool Placement::overlaps_result(uintptr_t begin, uintptr_t end) const {
  auto after = std::lower_bound(results_.begin(), results_.end(), std::make_pair(end, uintptr_t{0}));
  return after != results_.begin() && std::prev(after)->second > begin;
}

}  // namespace t2j
