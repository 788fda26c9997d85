// Reads and exchanges memory of tensors by the offsets that `learn_layout` has found; see `storage.h`. The GIL is held.
// Nothing may be read through an offset while `layout.is_known` is false. Reads are of whole words, through `memcpy`.
// Every function returns without a Python error set, and throws nothing.
#include "storage.h"

#include <cstdint>
#include <cstring>
#include <utility>

#include "ref.h"

namespace t2j::storage {

namespace {

// `c10::intrusive_ptr_target`: a pointer to virtual functions, then the counts. The low half counts the owners.
constexpr size_t kCounts = 1;
constexpr size_t kWordsOfPointer = 3;  // `c10::DataPtr` without its device: address, context, deleter
constexpr size_t kMostWords = 8;

struct Layout {
  bool is_known = false;
  size_t implementation = 0;  // of a tensor object: its `TensorImpl`
  size_t storage = 0;         // of a `TensorImpl`: its `StorageImpl`
  size_t memory = 0;          // of a `StorageImpl`: its `DataPtr`
} layout;

uintptr_t word(const void* object, size_t index) {
  uintptr_t value;
  std::memcpy(&value, static_cast<const char*>(object) + index * sizeof(value), sizeof(value));
  return value;
}

uint32_t owners(const void* target) { return static_cast<uint32_t>(word(target, kCounts)); }

size_t find(const void* object, uintptr_t value, size_t first) {
  for (size_t i = first; i < kMostWords; ++i)
    if (word(object, i) == value) return i;
  return 0;
}

bool learn_from(PyObject* sample, Layout* out) {
  PyObject* tensor;
  unsigned long long implementation, storage, address;
  unsigned int uses;
  if (!PyArg_ParseTuple(sample, "OKKKI", &tensor, &implementation, &storage, &address, &uses)) return false;
  const void* impl = reinterpret_cast<const void*>(implementation);
  const void* memory = reinterpret_cast<const void*>(storage);
  out->implementation = find(tensor, implementation, 2);
  out->storage = out->implementation ? find(impl, storage, kCounts + 1) : 0;
  out->memory = out->storage && owners(memory) == uses ? find(memory, address, kCounts + 1) : 0;
  return out->memory != 0;
}

const void* implementation(PyObject* tensor) {
  return reinterpret_cast<const void*>(word(tensor, layout.implementation));
}

void* cdata(PyObject* storage) {
  Ref number = Ref::steal(PyObject_GetAttrString(storage, "_cdata"));
  void* address = number ? PyLong_AsVoidPtr(number.get()) : nullptr;
  PyErr_Clear();
  return address;
}

}  // namespace

bool learn_layout(PyObject* samples) {
  Layout found;
  layout = found;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(samples); ++i) {
    Layout next;
    bool same = learn_from(PyTuple_GET_ITEM(samples, i), &next) &&
                (i == 0 || (next.implementation == found.implementation && next.storage == found.storage &&
                            next.memory == found.memory));
    if (!same) {
      PyErr_Clear();
      return false;
    }
    found = next;
  }
  found.is_known = PyTuple_GET_SIZE(samples) > 0;
  layout = found;
  return layout.is_known;
}

const void* of(PyObject* tensor) {
  const void* impl = layout.is_known ? implementation(tensor) : nullptr;
  return impl ? reinterpret_cast<const void*>(word(impl, layout.storage)) : nullptr;
}

bool is_referenced_elsewhere(PyObject* tensor) {
  const void* storage = of(tensor);
  if (!storage || Py_REFCNT(tensor) != 1) return true;
  return owners(implementation(tensor)) != 1 || owners(storage) != 1;
}

bool exchange_memory(PyObject* a, PyObject* b) { return layout.is_known && exchange_memory_with(cdata(a), b); }

bool exchange_memory_with(const void* storage, PyObject* other) {
  void* second = cdata(other);
  if (!storage || !second) return false;
  uintptr_t* here = static_cast<uintptr_t*>(const_cast<void*>(storage)) + layout.memory;
  uintptr_t* there = static_cast<uintptr_t*>(second) + layout.memory;
  for (size_t i = 0; i < kWordsOfPointer; ++i) std::swap(here[i], there[i]);
  return true;
}

bool is_layout_known() { return layout.is_known; }

void set_address(const void* storage, void* address) {
  auto* words = static_cast<char*>(const_cast<void*>(storage));
  std::memcpy(words + layout.memory * sizeof(address), &address, sizeof(address));
}

uint64_t owners_of(const void* storage) { return word(storage, kCounts); }

uint64_t owners_of_tensor(PyObject* tensor) { return word(implementation(tensor), kCounts); }

}  // namespace t2j::storage
