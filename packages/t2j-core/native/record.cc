// Reads the fields of a Python `NamedTuple`; see `record.h`. Runs while a call site is built, on a thread of XLA, with
// the GIL held. Throws nothing. No field may be read after the last one: the caller passes the number of fields, and
// `Record` checks it.
#include "record.h"

namespace t2j {

Record::Record(PyObject* tuple, const char* name, Py_ssize_t size) : tuple_(tuple), name_(name) {
  is_ok_ = PyTuple_Check(tuple) && PyTuple_GET_SIZE(tuple) == size;
  if (!is_ok_) PyErr_Format(PyExc_TypeError, "Expected a `%s` with %zd fields, got %R.", name, size, tuple);
}

PyObject* Record::next() { return is_ok_ ? PyTuple_GET_ITEM(tuple_, place_++) : nullptr; }

void Record::refuse(const char* field, const char* expected) {
  is_ok_ = false;
  PyErr_Clear();
  PyErr_Format(PyExc_TypeError, "The field `%s` of a `%s` must be %s, got %R.", field, name_, expected,
               PyTuple_GET_ITEM(tuple_, place_ - 1));
}

PyObject* Record::object(const char*) { return next(); }

PyObject* Record::tuple(const char* field) {
  PyObject* item = next();
  if (!item || PyTuple_Check(item)) return item;
  refuse(field, "a tuple");
  return nullptr;
}

const char* Record::text(const char* field) {
  PyObject* item = next();
  const char* text = item && PyUnicode_Check(item) ? PyUnicode_AsUTF8(item) : nullptr;
  if (item && !text) refuse(field, "a str");
  return text ? text : "";
}

int64_t Record::integer(const char* field, int64_t lowest, int64_t highest) {
  PyObject* item = next();
  int64_t value = item ? PyLong_AsLongLong(item) : lowest;  // -1 for what is not an int
  if (item && (value < lowest || value > highest)) refuse(field, "an int that is not negative and not too large");
  return is_ok_ ? value : 0;
}

bool Record::flag(const char* field) {
  PyObject* item = next();
  if (item && !PyBool_Check(item)) refuse(field, "a bool");
  return item == Py_True;
}

}  // namespace t2j
