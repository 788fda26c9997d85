// Tensors over memory that XLA owns, counted: the count tells when something outlives its call.
//
// Each call has one or two blocks of these (see `lender.h`), on the thread on which XLA runs it, with the GIL held.
// `on_delete` is different: torch calls it on any thread, with or without the GIL, as it frees the last owner of the
// memory, which may be long after the call. It may only touch the atomics of its block.
#pragma once
#include <Python.h>

#include <atomic>
#include <memory>

#include "ref.h"
#include "site.h"

namespace t2j {

// The DLPack structs of one call, and how many of the tensors made from them still exist. The last owner frees it.
class Borrows {
 public:
  static Borrows* open(size_t capacity);  // null without memory

  // A new tensor over `data`, described by `operand`. Null with a Python error set. At most `capacity` times.
  Ref lend(const Operand& operand, void* data, dl::Device device);

  // Of the tensors in the order in which they were lent: whether one, or anything over its memory, still exists.
  bool is_alive(size_t i) const { return slots_[i].is_alive.load(std::memory_order_acquire); }
  // The `StorageImpl` that the tensor had when it was lent, or null.
  const void* storage(size_t i) const { return slots_[i].storage; }

  bool any_alive() const { return references_.load(std::memory_order_acquire) > 1; }
  void close();  // drops the call's own reference

  struct Close {
    void operator()(Borrows* borrows) const { borrows->close(); }
  };

 private:
  struct Slot {
    union {
      dl::Managed capsule;
      dl::ManagedVersioned versioned;
    };
    const void* storage;
    std::atomic<bool> is_alive;
  };
  Ref make_tensor(Slot* slot, const Operand& operand, void* data, dl::Device device);
  void release();
  template <typename Managed>
  static void on_delete(Managed* managed) {
    auto* borrows = static_cast<Borrows*>(managed->context);
    reinterpret_cast<Slot*>(managed)->is_alive.store(false, std::memory_order_release);
    borrows->release();
  }

  std::atomic<int64_t> references_;
  size_t capacity_, used_;
  Slot slots_[1];  // `capacity_` of them
};

using OwnBorrows = std::unique_ptr<Borrows, Borrows::Close>;

extern std::atomic<int64_t> escaped_calls;  // finished calls of which a tensor still exists

}  // namespace t2j
