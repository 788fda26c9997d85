// Turns of the calls whose tensors are all small, on CPUs.
//
// PyTorch gives the GIL away at each operation. If calls of several devices run at the same time, an operation on a
// small tensor then waits for the GIL for longer than it takes. So these calls run one after another. Nothing relies on
// that: a call may wait for one on another device. Whoever waits too long for one call runs beside it, and the site of
// that call takes no turns any more.
#pragma once
#include <chrono>

#include "site.h"

namespace t2j {

class Turn {
 public:
  // Waits for the turn of a call, without the GIL. No turn if `site` is null, or takes none.
  explicit Turn(Site* site);
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  // How long to wait for one call; returns what it was before. For tests.
  static std::chrono::duration<double> set_patience(std::chrono::duration<double> patience);

 private:
  bool has_turn_ = false;
};

}  // namespace t2j
