#include "borrow.h"

#include <cstdlib>
#include <new>

#include "storage.h"

namespace t2j {

std::atomic<int64_t> escaped_calls{0};

namespace {
constexpr size_t kCommonCapacity = 32;
thread_local Borrows* spare = nullptr;  // one block a thread is kept: a call then allocates nothing
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

PyObject* Borrows::lend(const Operand& operand, void* data, dl::Device device) {
  Slot* slot = &slots_[used_++];
  new (&slot->is_alive) std::atomic<bool>(true);
  PyObject* tensor = make_tensor(slot, operand, data, device);
  slot->storage = tensor ? storage::of(tensor) : nullptr;
  return tensor;
}

PyObject* Borrows::make_tensor(Slot* slot, const Operand& operand, void* data, dl::Device device) {
  references_.fetch_add(1, std::memory_order_relaxed);
  if (hooks.exchange) {
    slot->versioned = {{1, 0}, this, &on_delete<dl::ManagedVersioned>, 0, operand.tensor};
    slot->versioned.tensor.data = data;
    slot->versioned.tensor.device = device;
    void* tensor = nullptr;
    if (hooks.exchange->to_object(&slot->versioned, &tensor) != 0) return nullptr;
    return static_cast<PyObject*>(tensor);
  }
  slot->capsule = {operand.tensor, this, &on_delete<dl::Managed>};
  slot->capsule.tensor.data = data;
  slot->capsule.tensor.device = device;
  PyObject* capsule = PyCapsule_New(&slot->capsule, "dltensor", nullptr);
  if (!capsule) return nullptr;
  PyObject* tensor = PyObject_CallOneArg(hooks.from_dlpack, capsule);
  Py_DECREF(capsule);
  return tensor;
}

void Borrows::release() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  --escaped_calls;  // the call's own reference went first, so the call counted itself
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
