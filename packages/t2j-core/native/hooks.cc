// Reads the hooks that Python hands over, and lists them. Called by functions of the module with the GIL held: at
// import on the importing thread, and by tests. The call path only reads the result, `hooks`. Nothing here may change
// `hooks` before every hook has been read.
#include "hooks.h"

namespace t2j {

Hooks hooks;

namespace hook {

bool Callables::read(PyObject* object) {
  tuple = object;
  if (!PyTuple_Check(object)) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i)
    if (!PyCallable_Check(PyTuple_GET_ITEM(object, i))) return false;
  return true;
}

bool Type::read(PyObject* object) {
  type = reinterpret_cast<PyTypeObject*>(object);
  return PyType_Check(object);
}

bool Integer::read(PyObject* object) {
  if (!PyLong_Check(object)) return false;
  value = PyLong_AsLongLong(object);
  return !PyErr_Occurred();
}

bool Attribute::read(PyObject* object) {
  if (!Py_IS_TYPE(object, &PyGetSetDescr_Type)) return false;
  const PyGetSetDef* attribute = reinterpret_cast<PyGetSetDescrObject*>(object)->d_getset;
  getter_ = attribute->get;
  closure_ = attribute->closure;
  return true;
}

bool Exchange::read(PyObject* object) {
  if (object == Py_None) return true;
  table = static_cast<const dl::ExchangeApi*>(PyCapsule_GetPointer(object, "dlpack_exchange_api"));
  if (!table) return false;
  while (table && table->version.major != 1) table = table->previous;  // null for an unknown table: capsules still work
  return true;
}

}  // namespace hook

namespace {

template <typename Kind>
bool read_hook(PyObject* attributes, const char* name, const char* signature, Kind* out) {
  Ref object = Ref::borrow(PyDict_GetItemString(attributes, name));
  if (!object) {
    PyErr_Format(PyExc_TypeError,
                 "The hook `%s` of the native part is missing.\n  Expected: %s\nReinstall t2j-core: its Python and its "
                 "native part are of different versions.",
                 name, signature);
    return false;
  }
  if (out->read(object.get())) return true;
  PyErr_Clear();
  PyErr_Format(PyExc_TypeError,
               "The hook `%s` of the native part is of the wrong kind.\n  Expected: %s\n  Got:      %R", name,
               signature, object.get());
  return false;
}

// The first key of the dictionary that is not the name of a hook, or null.
PyObject* find_unknown(PyObject* attributes) {
  PyObject *key, *value;
  for (Py_ssize_t place = 0; PyDict_Next(attributes, &place, &key, &value);) {
    bool is_known = !PyUnicode_Check(key);
#define T2J_COMPARE(kind, name, signature) is_known |= PyUnicode_CompareWithASCIIString(key, #name) == 0;
    T2J_HOOKS(T2J_COMPARE)
#undef T2J_COMPARE
    if (!is_known) return key;
  }
  return nullptr;
}

}  // namespace

bool set_hooks(PyObject* object) {
  Ref own = Ref::steal(PyObject_GetAttrString(object, "__dict__"));
  Ref attributes = Ref::steal(own ? PyDict_Copy(own.get()) : nullptr);
  if (!attributes) return false;
  Hooks found;
#define T2J_READ(kind, name, signature) \
  if (!read_hook(attributes.get(), #name, signature, &found.name)) return false;
  T2J_HOOKS(T2J_READ)
#undef T2J_READ
  if (PyObject* name = find_unknown(attributes.get())) {
    PyErr_Format(PyExc_TypeError,
                 "The native part has no hook %R.\nReinstall t2j-core: its Python and its native part are of different "
                 "versions.",
                 name);
    return false;
  }
  attributes.release();
  hooks = found;
  return true;
}

Ref hook_list() {
  Ref list = Ref::steal(PyDict_New());
  if (!list) return Ref();
  auto add = [&](const char* name, const char* kind, int arguments) {
    Ref item = Ref::steal(Py_BuildValue("si", kind, arguments));
    return item && PyDict_SetItemString(list.get(), name, item.get()) == 0;
  };
#define T2J_ADD(kind, name, signature) \
  if (!add(#name, kind::kKind, kind::kArguments)) return Ref();
  T2J_HOOKS(T2J_ADD)
#undef T2J_ADD
  return list;
}

}  // namespace t2j
