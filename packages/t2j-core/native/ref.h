// `Ref`: owns one reference to a Python object. Used throughout this folder.
//
// Every method needs the GIL, except moving. A plain `PyObject*` parameter or member in this folder is borrowed:
// somebody else owns it for as long as it is used. A null `Ref` that a function returns means that a Python error is
// set.
#pragma once
#include <Python.h>

#include <utility>

namespace t2j {

class Ref {
 public:
  Ref() = default;
  static Ref steal(PyObject* object) { return Ref(object); }               // takes over the caller's reference
  static Ref borrow(PyObject* object) { return Ref(Py_XNewRef(object)); }  // adds a reference
  Ref(Ref&& other) noexcept : object_(other.release()) {}
  Ref& operator=(Ref&& other) noexcept {
    PyObject* old = object_;
    object_ = other.release();
    Py_XDECREF(old);  // last: it may run Python code that finds this object
    return *this;
  }
  ~Ref() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }
  PyObject* release() {  // the caller owns the reference from now on
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  explicit Ref(PyObject* object) : object_(object) {}
  PyObject* object_ = nullptr;
};

}  // namespace t2j
