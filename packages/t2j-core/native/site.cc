#include "site.h"

#include <cstring>

namespace t2j {

Hooks hooks;
std::atomic<int64_t> live_sites{0};

namespace {

// (code, bits, shape, pass) -> operand. The GIL is held; errors are Python's.
bool read_operand(PyObject* item, Operand* out) {
  int code, bits, pass;
  PyObject* shape;
  if (!PyArg_ParseTuple(item, "iiO!i", &code, &bits, &PyTuple_Type, &shape, &pass)) return false;
  Py_ssize_t ndim = PyTuple_GET_SIZE(shape);
  out->layout.resize(2 * ndim);
  out->bytes = (bits + 7) / 8;
  for (Py_ssize_t i = ndim - 1, stride = 1; i >= 0; --i) {
    int64_t size = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
    if (size < 0) return false;
    out->layout[i] = size;
    out->layout[ndim + i] = stride;
    stride *= size > 0 ? size : 1;
    out->bytes *= size;
  }
  out->tensor.ndim = static_cast<int32_t>(ndim);
  out->tensor.dtype = {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
  out->tensor.shape = out->layout.data();
  out->tensor.strides = out->layout.data() + ndim;
  out->pass = static_cast<Pass>(pass);
  return true;
}

bool read_operands(PyObject* list, std::vector<Operand>* out) {
  Py_ssize_t n = PyTuple_GET_SIZE(list);
  out->resize(n);  // operands never move again: their templates point into themselves
  for (Py_ssize_t i = 0; i < n; ++i)
    if (!read_operand(PyTuple_GET_ITEM(list, i), &(*out)[i])) return false;
  return true;
}

// The value of an attribute of a frame, if it is there and of this type.
template <typename Value>
const Value* find_attribute(const ffi::Attrs& attrs, const char* name, int32_t type) {
  for (int64_t i = 0; i < attrs.size; ++i) {
    const ffi::Span* key = attrs.names[i];
    if (key->len == std::strlen(name) && std::memcmp(key->ptr, name, key->len) == 0)
      return attrs.types[i] == type ? static_cast<const Value*>(attrs.values[i]) : nullptr;
  }
  return nullptr;
}

const int64_t* find_integer(const ffi::Attrs& attrs, const char* name) {
  auto* scalar = find_attribute<ffi::Scalar>(attrs, name, ffi::kAttrScalar);
  return scalar && scalar->dtype == ffi::kS64 ? static_cast<const int64_t*>(scalar->value) : nullptr;
}

}  // namespace

std::unique_ptr<Site> Site::from_attributes(const ffi::Attrs& attrs) {
  const int64_t* id = find_integer(attrs, "id");
  auto* call = find_attribute<ffi::Span>(attrs, "call", ffi::kAttrString);
  if (!id || !call) return PyErr_SetString(PyExc_RuntimeError, "a t2j call without its attributes"), nullptr;
  PyObject* key = PyUnicode_DecodeUTF8(call->ptr, static_cast<Py_ssize_t>(call->len), nullptr);
  PyObject* answer = key ? PyObject_CallFunction(hooks.resolve, "LN", static_cast<long long>(*id), key) : nullptr;
  if (!answer) return nullptr;
  std::unique_ptr<Site> site(new Site);
  ++live_sites;
  PyObject *operands, *results;
  int single, pass_results, may_keep_results, checks_always;
  bool ok =
      PyArg_ParseTuple(answer, "OOOO!O!pppp", &site->target, &site->label, &site->lending, &PyTuple_Type, &operands,
                       &PyTuple_Type, &results, &single, &pass_results, &may_keep_results, &checks_always);
  Py_XINCREF(site->target);
  Py_XINCREF(site->label);
  Py_XINCREF(site->lending);
  ok = ok && read_operands(operands, &site->operands) && read_operands(results, &site->results);
  Py_DECREF(answer);
  if (!ok) return nullptr;
  for (Operand& operand : site->operands)
    if (operand.bytes == 0) operand.pass = Pass::kClone;  // there is nothing to share, and so nothing to watch
  if (const int64_t* pair = find_integer(attrs, "pair")) site->pair = *pair;
  site->single = single;
  site->checks_always = checks_always;
  site->may_keep_results = may_keep_results;
  site->pass_results = site->may_overlap = pass_results;
  for (const Operand& operand : site->operands) site->may_overlap |= operand.pass == Pass::kMutable;
  return site;
}

Site::~Site() {
  --live_sites;
  Py_XDECREF(target);
  Py_XDECREF(label);
  Py_XDECREF(lending);
  for (PyObject* comparison : comparisons) Py_DECREF(comparison);
}

}  // namespace t2j
