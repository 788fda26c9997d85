// Who has the turn, and who waits; see `turn.h`. Runs on the threads of calls, without the GIL.
#include "turn.h"

#include <condition_variable>
#include <mutex>
#include <utility>

namespace t2j {

namespace {

struct Queue {
  std::mutex mutex;
  std::condition_variable is_free;
  Site* holder = nullptr;  // its call has the turn
  uint64_t number = 0;     // of the turn
  std::chrono::duration<double> patience{0.02};
};

// Never destroyed: threads of XLA may wait there when the process ends.
Queue& queue() {
  static auto* queue = new Queue;
  return *queue;
}

}  // namespace

Turn::Turn(Site* site) {
  if (!site || !site->takes_turns.load(std::memory_order_relaxed)) return;
  Queue& q = queue();
  std::unique_lock<std::mutex> lock(q.mutex);
  while (q.holder) {
    uint64_t seen = q.number;
    if (q.is_free.wait_for(lock, q.patience, [&] { return !q.holder || q.number != seen; })) continue;
    q.holder->takes_turns.store(false, std::memory_order_relaxed);
    return;
  }
  q.holder = site;
  ++q.number;
  has_turn_ = true;
}

Turn::~Turn() {
  if (!has_turn_) return;
  Queue& q = queue();
  {
    std::lock_guard<std::mutex> lock(q.mutex);
    q.holder = nullptr;
  }
  q.is_free.notify_one();
}

std::chrono::duration<double> Turn::set_patience(std::chrono::duration<double> patience) {
  Queue& q = queue();
  std::lock_guard<std::mutex> lock(q.mutex);
  return std::exchange(q.patience, patience);
}

}  // namespace t2j
