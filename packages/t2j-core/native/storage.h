// Where torch keeps the memory behind a tensor object. Read to tell what outlives a call, and to move it.
#pragma once
#include <Python.h>

namespace t2j::storage {

// Finds the layout of this torch by looking for known values: tuples (tensor, `tensor._cdata`, `storage._cdata`,
// `storage.data_ptr()`, uses of the storage). False, and nothing is known, where a value is not found.
bool learn_layout(PyObject* samples);

// Whether anything but the caller's one reference refers to the tensor or to its memory. True where the layout is not
// known.
bool is_referenced_elsewhere(PyObject* tensor);

// The `StorageImpl` of a tensor, which is the same as long as the tensor keeps its memory. Null if not known.
const void* of(PyObject* tensor);

// Exchanges the memory of two storages of the same size and device. False where the layout is not known.
bool exchange_memory(PyObject* a, PyObject* b);

}  // namespace t2j::storage
