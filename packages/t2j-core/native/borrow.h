// Tensors over memory that XLA owns, counted: the count tells when something outlives its call.
#pragma once
#include <Python.h>

#include "site.h"

namespace t2j {

// The DLPack structs of one call, and how many of the tensors made from them still exist. The last to let go frees it.
class Borrows {
 public:
  static Borrows* open(size_t capacity);

  // A new tensor over `data`, described by `operand`. Null with a Python error set.
  PyObject* lend(const Operand& operand, void* data, dl::Device device);

  // Of the tensors in the order in which they were lent: whether one, or anything over its memory, still exists.
  bool is_alive(size_t i) const { return slots_[i].is_alive.load(std::memory_order_acquire); }
  const void* storage(size_t i) const { return slots_[i].storage; }

  int64_t alive() const { return references_.load(std::memory_order_acquire) - 1; }
  void close();  // the call's own reference

 private:
  struct Slot {
    union {
      dl::Managed capsule;
      dl::ManagedVersioned versioned;
    };
    const void* storage;  // torch's, for telling whether a tensor still has the memory that it was lent with
    std::atomic<bool> is_alive;
  };
  PyObject* make_tensor(Slot* slot, const Operand& operand, void* data, dl::Device device);
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

extern std::atomic<int64_t> escaped_calls;  // finished calls of which a tensor still exists

}  // namespace t2j
