// Makes and counts the tensors that a call lends; see `borrow.h`. `open`, `lend` and `close` run on the thread of the
// call with the GIL; `release` on any thread, perhaps without it, so it may touch no Python object. Blocks come from
// `malloc`: `release` may run after the interpreter has ended.
#include "borrow.h"

#include <cstdlib>
#include <new>

#include "hooks.h"
#include "storage.h"

namespace t2j {

std::atomic<int64_t> escaped_calls{0};

namespace {
constexpr size_t kCommonCapacity = 32;
thread_local Borrows* spare = nullptr;  // each thread keeps one block, so that most calls allocate none
}  // namespace

Borrows* Borrows::open(size_t capacity) {
  Borrows* block = spare;
  if (block && block->capacity_ >= capacity) {
    spare = nullptr;
  } else {
    size_t size = capacity > kCommonCapacity ? capacity : kCommonCapacity;
    block = static_cast<Borrows*>(std::malloc(sizeof(Borrows) + size * sizeof(Slot)));
    if (!block) return nullptr;
    block->capacity_ = size;
  }
  new (&block->references_) std::atomic<int64_t>(1);
  block->used_ = 0;
  return block;
}

Ref Borrows::lend(const Operand& operand, void* data, dl::Device device) {
  Slot* slot = &slots_[used_++];
  new (&slot->is_alive) std::atomic<bool>(true);
  Ref tensor = make_tensor(slot, operand, data, device);
  slot->storage = tensor ? storage::of(tensor.get()) : nullptr;
  return tensor;
}

Ref Borrows::make_tensor(Slot* slot, const Operand& operand, void* data, dl::Device device) {
  references_.fetch_add(1, std::memory_order_relaxed);
  if (hooks.exchange) {
    slot->versioned = {{1, 0}, this, &on_delete<dl::ManagedVersioned>, 0, operand.tensor};
    slot->versioned.tensor.data = data;
    slot->versioned.tensor.device = device;
    void* tensor = nullptr;
    if (hooks.exchange->to_object(&slot->versioned, &tensor) != 0) return Ref();
    return Ref::steal(static_cast<PyObject*>(tensor));
  }
  slot->capsule = {operand.tensor, this, &on_delete<dl::Managed>};
  slot->capsule.tensor.data = data;
  slot->capsule.tensor.device = device;
  // The capsule stores a pointer into the slot. It has no destructor: the tensor made from it calls the deleter.
  Ref capsule = Ref::steal(PyCapsule_New(&slot->capsule, "dltensor", nullptr));
  return capsule ? hooks.from_dlpack(capsule) : Ref();
}

void Borrows::release() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  --escaped_calls;  // `close` dropped the call's own reference before, and counted the call
  std::free(this);
}

void Borrows::close() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) != 1) {
    ++escaped_calls;
    return;
  }
  if (!spare || spare->capacity_ < capacity_) {
    std::free(spare);
    spare = this;
  } else {
    std::free(this);
  }
}

}  // namespace t2j
