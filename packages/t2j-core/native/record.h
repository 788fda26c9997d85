// Reads the fields of a Python `NamedTuple`, one after the other. `site.cc` uses it to build call sites, on a thread of
// XLA, with the GIL held. The first field of the wrong type sets a `TypeError` that names it; later reads then return
// zeros, and must not set another error.
#pragma once
#include <Python.h>

#include <cstdint>

namespace t2j {

class Record {
 public:
  // `tuple` is borrowed and outlives this. `name` is the class on the Python side, `size` how many fields it has.
  Record(PyObject* tuple, const char* name, Py_ssize_t size);

  bool ok() const { return is_ok_; }
  PyObject* object(const char* field);                                  // any object; borrowed
  PyObject* tuple(const char* field);                                   // borrowed
  const char* text(const char* field);                                  // belongs to the tuple
  int64_t integer(const char* field, int64_t lowest, int64_t highest);  // within these bounds; `lowest` is 0 or more
  bool flag(const char* field);                                         // True or False itself

  // Sets a `TypeError`: the field read last must be `expected`.
  void refuse(const char* field, const char* expected);

 private:
  PyObject* next();

  PyObject* tuple_;
  const char* name_;
  Py_ssize_t place_ = 0;
  bool is_ok_;
};

}  // namespace t2j
