// Where torch keeps the memory behind a tensor object: read to tell what outlives a call, and changed to move it.
//
// Torch has no public function for this. The offsets are found at import by looking for known values; where one is not
// found, or the exchange does not work, every function here says so and nothing is read. All need the GIL, and throw no
// exception and leave no Python error set. `Loans` calls them on the thread of a call.
#pragma once
#include <Python.h>

#include <cstdint>

namespace t2j::storage {

// Finds the layout of this torch from samples: tuples (tensor, `tensor._cdata`, `storage._cdata`, `storage.data_ptr()`,
// uses of the storage). False where a value is not found, or without samples: then the layout is not known.
bool learn_layout(PyObject* samples);

// Whether anything but the caller's one reference refers to the tensor or to its memory. True where the layout is not
// known.
bool is_referenced_elsewhere(PyObject* tensor);

// The `StorageImpl` of a tensor, which is the same as long as the tensor keeps its memory. Null where the layout is not
// known.
const void* of(PyObject* tensor);

// Exchanges the memory of two storages of the same size and device. False where the layout is not known.
bool exchange_memory(PyObject* a, PyObject* b);

// For windows, only where the layout is known: `storage` is a `StorageImpl` that is alive.
bool is_layout_known();
void set_address(const void* storage, void* address);  // lets its memory begin elsewhere; the owner stays
bool exchange_memory_with(const void* storage, PyObject* other);
uint64_t owners_of(const void* storage);  // the counts of strong and weak references, in one number
uint64_t owners_of_tensor(PyObject* tensor);

}  // namespace t2j::storage
