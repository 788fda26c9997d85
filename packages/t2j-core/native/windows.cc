// Makes, opens and closes windows; see `windows.h`. Runs with the GIL held. A window's storage may be read and written
// only while it is alive: it is not the tensor's any more if the function has given the tensor other memory.
#include "windows.h"

#include <cstdint>
#include <unordered_set>
#include <vector>

#include "hooks.h"
#include "storage.h"

namespace t2j {

namespace {

bool describe(PyObject* tensor, dl::Tensor* out) {
  if (hooks.exchange->borrow_from_object(tensor, out) != 0) return false;
  out->data = static_cast<char*>(out->data) + out->byte_offset;
  out->byte_offset = 0;
  return true;
}

struct Owners {
  uint64_t of_object, of_tensor, of_memory, is_own;
};

}  // namespace

bool Windows::are_known() { return hooks.exchange && storage::is_layout_known(); }

bool Windows::make(PyObject* tensors) {
  Py_ssize_t n = PyList_GET_SIZE(tensors);
  borrows_.reset(Borrows::open(n));
  if (!borrows_) return PyErr_NoMemory(), false;
  Ref list = Ref::steal(PyList_New(n));
  for (Py_ssize_t i = 0; list && i < n; ++i) {
    Operand operand;
    if (!describe(PyList_GET_ITEM(tensors, i), &operand.tensor)) return false;
    Ref window = borrows_->lend(operand, operand.tensor.data, operand.tensor.device);
    if (!window) return false;
    PyList_SET_ITEM(list.get(), i, window.release());
  }
  tensors_ = std::move(list);
  count_ = n;
  is_moved_.resize(n);
  return static_cast<bool>(tensors_);
}

void Windows::show(size_t i, void* address) {
  if (!is_moved_[i] && borrows_->is_alive(i)) storage::set_address(borrows_->storage(i), address);
}

bool Windows::open(PyObject* tensors) {
  for (size_t i = 0; i < count_; ++i) {
    dl::Tensor memory{};
    if (!describe(PyList_GET_ITEM(tensors, i), &memory)) return false;
    show(i, memory.data);
  }
  return true;
}

void Windows::close(void* blank) {
  for (size_t i = 0; i < count_; ++i) show(i, blank);
}

Ref Windows::owners() const {
  std::vector<Owners> found(count_);
  for (size_t i = 0; i < count_; ++i) {
    PyObject* tensor = PyList_GET_ITEM(tensors_.get(), i);
    uint64_t of_memory = borrows_->is_alive(i) ? storage::owners_of(borrows_->storage(i)) : 0;
    found[i] = {static_cast<uint64_t>(Py_REFCNT(tensor)), storage::owners_of_tensor(tensor), of_memory, has_own(i)};
  }
  return Ref::steal(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(found.data()), count_ * sizeof(Owners)));
}

Ref Windows::sharing(PyObject* tensors) const {
  std::unordered_set<const void*> storages;
  for (size_t i = 0; i < count_; ++i) storages.insert(borrows_->storage(i));
  Ref places = Ref::steal(PyList_New(0));
  for (Py_ssize_t i = 0; places && i < PyList_GET_SIZE(tensors); ++i) {
    PyObject* tensor = PyList_GET_ITEM(tensors, i);
    if (tensor == Py_None || !storages.count(storage::of(tensor))) continue;
    Ref place = Ref::steal(PyLong_FromSsize_t(i));
    if (!place || PyList_Append(places.get(), place.get()) != 0) return Ref();
  }
  return places;
}

bool Windows::has_own(size_t i) const {
  return i < count_ && storage::of(PyList_GET_ITEM(tensors_.get(), i)) == borrows_->storage(i);
}

bool Windows::move(size_t i, PyObject* storage) {
  if (i >= count_ || !borrows_->is_alive(i)) return false;
  is_moved_[i] = storage::exchange_memory_with(borrows_->storage(i), storage);
  return is_moved_[i];
}

}  // namespace t2j
