// Builds call sites: reads the attributes of a frame, and the `CallSite` (`_run/call_site.py`) that Python returns for
// them. Called by the handler on a thread of XLA, with the GIL held. A failure sets a Python error, which the handler
// takes. Nothing of a tuple from Python may be used before its `Record` is `ok`.
#include "site.h"

#include <cstring>

#include "frame.h"
#include "hooks.h"
#include "record.h"

namespace t2j {

std::atomic<int64_t> live_sites{0};

Site::Site() { ++live_sites; }
Site::~Site() { --live_sites; }

namespace {

// Fills the shape, the strides of a contiguous tensor and the size in bytes. False with a Python error set.
bool read_shape(PyObject* shape, int bits, Operand* out) {
  Py_ssize_t ndim = PyTuple_GET_SIZE(shape);
  Record sizes(shape, "shape", ndim);
  out->layout.resize(2 * ndim);
  out->bytes = (bits + 7) / 8;
  for (Py_ssize_t i = 0; i < ndim; ++i) out->layout[i] = sizes.integer("size", 0, INT64_MAX);
  for (Py_ssize_t i = ndim - 1, stride = 1; i >= 0; --i) {
    int64_t size = out->layout[i];
    out->layout[ndim + i] = stride;
    stride *= size > 0 ? size : 1;
    out->bytes *= size;
  }
  out->tensor.ndim = static_cast<int32_t>(ndim);
  out->tensor.shape = out->layout.data();
  out->tensor.strides = out->layout.data() + ndim;
  return sizes.ok();
}

// From a `BufferSpec`. False with a Python error set.
bool read_operand(PyObject* item, Operand* out) {
  Record record(item, "BufferSpec", 5);
  out->dtype = dtype_by_name(record.text("dtype"));
  if (record.ok() && out->dtype < 0) record.refuse("dtype", "a short name of a dtype, such as 'f32'");
  auto code = static_cast<uint8_t>(record.integer("code", 0, UINT8_MAX));
  auto bits = static_cast<uint8_t>(record.integer("bits", 1, UINT8_MAX));
  PyObject* shape = record.tuple("shape");
  out->handover = static_cast<Handover>(record.integer("handover", 0, static_cast<int>(Handover::kMutable)));
  out->tensor.dtype = {code, bits, 1};
  return record.ok() && read_shape(shape, bits, out);
}

bool read_operands(PyObject* list, std::vector<Operand>* out) {
  Py_ssize_t n = PyTuple_GET_SIZE(list);
  out->resize(n);  // operands never move again: their templates point into themselves
  for (Py_ssize_t i = 0; i < n; ++i)
    if (!read_operand(PyTuple_GET_ITEM(list, i), &(*out)[i])) return false;
  return true;
}

bool read_site(PyObject* call_site, Site* out) {
  Record record(call_site, "CallSite", 11);
  out->target = Ref::borrow(record.object("target"));
  out->signature = Ref::borrow(record.object("signature"));
  out->lending = Ref::borrow(record.object("lending"));
  PyObject* operands = record.tuple("operands");
  PyObject* results = record.tuple("results");
  out->returns_tensor = record.flag("returns_tensor");
  out->pass_results = out->may_overlap = record.flag("pass_results");
  out->may_keep_results = record.flag("may_keep_results");
  out->checks_always = record.flag("checks_always");
  out->takes_turns = record.flag("takes_turns");
  out->may_repeat = record.flag("may_repeat");
  return record.ok() && read_operands(operands, &out->operands) && read_operands(results, &out->results);
}

// The value of an attribute of a frame, if it is there and of this type.
template <typename Value>
const Value* find_attribute(const ffi::Attrs& attrs, const char* name, int32_t type) {
  if (!attrs.names || !attrs.types || !attrs.values) return nullptr;
  for (int64_t i = 0; i < attrs.size; ++i) {
    const ffi::Span* key = attrs.names[i];
    if (key && key->ptr && key->len == std::strlen(name) && std::memcmp(key->ptr, name, key->len) == 0)
      return attrs.types[i] == type ? static_cast<const Value*>(attrs.values[i]) : nullptr;
  }
  return nullptr;
}

const int64_t* find_integer(const ffi::Attrs& attrs, const char* name) {
  auto* scalar = find_attribute<ffi::Scalar>(attrs, name, ffi::kAttrScalar);
  return scalar && scalar->dtype == ffi::kS64 ? static_cast<const int64_t*>(scalar->value) : nullptr;
}

}  // namespace

std::unique_ptr<Site> Site::from_attributes(const ffi::Attrs& attrs, bool is_captured) {
  const int64_t* id = find_integer(attrs, "id");
  auto* call = find_attribute<ffi::Span>(attrs, "call", ffi::kAttrString);
  if (!id || !call || (!call->ptr && call->len > 0)) {
    PyErr_SetString(PyExc_RuntimeError, "a t2j call without the attributes `id` (int64) and `call` (string)");
    return nullptr;
  }
  Ref text = Ref::steal(PyUnicode_DecodeUTF8(call->ptr, static_cast<Py_ssize_t>(call->len), nullptr));
  Ref call_site = text ? hooks.resolve(*id, text, is_captured) : Ref();
  if (!call_site) return nullptr;
  auto site = std::make_unique<Site>();
  if (!read_site(call_site.get(), site.get())) return nullptr;
  site->is_captured = is_captured;
  for (Operand& operand : site->operands) {
    if (operand.bytes == 0) operand.handover = Handover::kClone;  // there is nothing to share, and so nothing to watch
    site->may_overlap |= operand.handover == Handover::kMutable;
  }
  if (const int64_t* pair = find_integer(attrs, "pair")) site->pair = *pair;
  return site;
}

}  // namespace t2j
