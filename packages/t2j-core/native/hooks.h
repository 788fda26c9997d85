// The Python objects that the native part uses: one list, from which the struct `Hooks` and its reader are generated.
//
// `t2j_core/_lowering/hooks.py` declares the same names with their Python types, and says of each when it is called and
// what happens if it raises; tests/test_hooks.py compares both. `_lowering/native.py` hands the objects over once, at
// import. Reading and calling them needs the GIL. A call that fails returns null with a Python error set; the caller
// handles it.
#pragma once
#include <Python.h>

#include <cstdint>
#include <type_traits>

#include "dlpack.h"
#include "ref.h"

// X(kind, name, Python signature)
#define T2J_HOOKS(X)                                                                                             \
  X(hook::Exchange, exchange, "a capsule with torch's DLPack exchange table, or None before torch 2.10")         \
  X(hook::Attribute, version, "the attribute `Tensor._version`")                                                 \
  X(hook::Type, tensor_type, "the class `torch.Tensor`")                                                         \
  X(hook::Type, parameter_type, "the class `torch.nn.Parameter`")                                                \
  X(hook::Type, out_of_memory_error, "the class `torch.OutOfMemoryError`")                                       \
  X(hook::Callable<1>, from_dlpack, "(capsule) -> Tensor")                                                       \
  X(hook::Callable<1>, to_dlpack, "(Tensor) -> capsule")                                                         \
  X(hook::Callable<1>, is_conj, "(Tensor) -> bool")                                                              \
  X(hook::Callable<1>, is_neg, "(Tensor) -> bool")                                                               \
  X(hook::Callable<1>, clone, "(Tensor) -> Tensor")                                                              \
  X(hook::Callable<2>, copy, "(destination: Tensor, source: Tensor) -> None")                                    \
  X(hook::Callable<2>, copy_all, "(destinations: list[Tensor], sources: list[Tensor]) -> None")                  \
  X(hook::Callable<1>, storage, "(Tensor) -> UntypedStorage")                                                    \
  X(hook::Callable<1>, storage_uses, "(UntypedStorage) -> int")                                                  \
  X(hook::Callable<0>, is_grad_enabled, "() -> bool")                                                            \
  X(hook::Callable<1>, set_grad_enabled, "(bool) -> None")                                                       \
  X(hook::Callables, state_getters, "a tuple of functions () -> object")                                         \
  X(hook::Callable<2>, enter_state, "(is_first: bool, Signature) -> token")                                      \
  X(hook::Callable<1>, leave_state, "(token) -> None")                                                           \
  X(hook::Callable<2>, enter_stream, "(pointer: int, device: int) -> token")                                     \
  X(hook::Callable<1>, leave_stream, "(token) -> None")                                                          \
  X(hook::Callable<3>, enter_capture, "(target, pointer: int, device: int) -> token")                            \
  X(hook::Callable<1>, leave_capture, "(token) -> None")                                                         \
  X(hook::Callable<2>, warm_up, "(target, device: int) -> tuple[int, ...]")                                      \
  X(hook::Callable<3>, resolve, "(id: int, call: str, is_captured: bool) -> CallSite")                           \
  X(hook::Callable<5>, check_output, "(Signature, index: int, value, device_type: int, device: int) -> Tensor")  \
  X(hook::Callable<2>, refuse_results, "(Signature, returned) -> None")                                          \
  X(hook::Callable<3>, report, "(Signature | None, BaseException, depth: int) -> (code: int, message: str)")     \
  X(hook::Callable<1>, private_copy, "(Tensor) -> Tensor | None")                                                \
  X(hook::Callable<1>, digest, "(Tensor) -> Tensor")                                                             \
  X(hook::Callable<2>, has_same_bits, "(Tensor, Tensor | UntypedStorage) -> bool")                               \
  X(hook::Callable<1>, compare_later, "(list[(operand: int, is_private: bool, memory, memory)]) -> comparison")  \
  X(hook::Callable<1>, differing, "(comparison) -> tuple[(operand: int, is_private: bool), ...] | None")         \
  X(hook::Callable<4>, operand_written, "(Lending, operand: int, is_private: bool, has_lent: bool) -> None")     \
  X(hook::Callable<4>, argument_kept, "(Lending, index: int, is_result: bool, is_late: bool) -> None")           \
  X(hook::Callable<2>, operand_in_cycle, "(Lending, operand: int) -> None")                                      \
  X(hook::Callable<4>, movable_copy, "(Lending, index: int, is_result: bool, UntypedStorage) -> UntypedStorage") \
  X(hook::Callable<1>, raise_escaped, "(Lending) -> None")                                                       \
  X(hook::Callable<1>, stop_redirecting, "(target) -> None")                                                     \
  X(hook::Callable<0>, collect_garbage, "() -> None")                                                            \
  X(hook::Integer, most_checked_bytes, "an int")

namespace t2j {

namespace hook {

// One argument of a hook: a borrowed object, or a bool or a number that becomes one. Null with a Python error set.
class Argument {
 public:
  Argument(PyObject* borrowed) : object_(borrowed) {}
  Argument(const Ref& borrowed) : object_(borrowed.get()) {}
  template <typename Number, typename = std::enable_if_t<std::is_integral_v<Number>>>
  Argument(Number number) {
    if constexpr (std::is_same_v<Number, bool>) {
      object_ = number ? Py_True : Py_False;
    } else {
      owned_ = Ref::steal(PyLong_FromLongLong(static_cast<long long>(number)));
      object_ = owned_.get();
    }
  }
  PyObject* get() const { return object_; }

 private:
  Ref owned_;
  PyObject* object_;
};

// The kinds of hooks. `read` is false where `object` is not of the kind; a Python error may be set then. Kinds keep
// borrowed pointers: `set_hooks` owns the objects.

template <int kCount>
class Callable {
 public:
  static constexpr const char* kKind = "callable";
  static constexpr int kArguments = kCount;
  bool read(PyObject* object) {
    object_ = object;
    return PyCallable_Check(object);
  }

  template <typename... Arguments>
  Ref operator()(const Arguments&... arguments) const {
    static_assert(sizeof...(Arguments) == kCount, "T2J_HOOKS declares another number of arguments for this hook");
    if constexpr (kCount == 0) {
      return Ref::steal(PyObject_CallNoArgs(object_));
    } else {
      const Argument converted[] = {Argument(arguments)...};
      PyObject* raw[kCount + 1] = {};  // as `PyObject_Vectorcall` takes them; `converted` owns them
      for (int i = 0; i < kCount; ++i) {
        raw[i + 1] = converted[i].get();
        if (!raw[i + 1]) return Ref();
      }
      return Ref::steal(PyObject_Vectorcall(object_, raw + 1, kCount | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
    }
  }

 private:
  PyObject* object_ = nullptr;
};

struct Callables {
  static constexpr const char* kKind = "callables";
  static constexpr int kArguments = 0;
  bool read(PyObject* object);

  PyObject* tuple = nullptr;
};

struct Type {
  static constexpr const char* kKind = "type";
  static constexpr int kArguments = 0;
  bool read(PyObject* object);

  PyTypeObject* type = nullptr;
};

struct Integer {
  static constexpr const char* kKind = "int";
  static constexpr int kArguments = 0;
  bool read(PyObject* object);

  int64_t value = 0;
};

// The C function behind an attribute of a class of C, which is quicker than looking the attribute up.
struct Attribute {
  static constexpr const char* kKind = "attribute";
  static constexpr int kArguments = 0;
  bool read(PyObject* object);
  Ref operator()(PyObject* object) const { return Ref::steal(getter_(object, closure_)); }

 private:
  getter getter_ = nullptr;
  void* closure_ = nullptr;
};

struct Exchange {
  static constexpr const char* kKind = "capsule";
  static constexpr int kArguments = 0;
  bool read(PyObject* object);
  const dl::ExchangeApi* operator->() const { return table; }
  explicit operator bool() const { return table != nullptr; }

  const dl::ExchangeApi* table = nullptr;  // null: torch older than 2.10, capsules instead
};

}  // namespace hook

struct Hooks {
#define T2J_MEMBER(kind, name, signature) kind name;
  T2J_HOOKS(T2J_MEMBER)
#undef T2J_MEMBER
};
extern Hooks hooks;

// Reads `hooks` from the attributes of a Python object, which stay alive until the process ends, because XLA may call
// until then. False with a `TypeError` that names a hook that is missing, unknown or of the wrong kind; then `hooks`
// stays as it was.
bool set_hooks(PyObject* object);

// {name: (kind, number of arguments)}, for the test that compares the list with `_lowering/hooks.py`.
Ref hook_list();

}  // namespace t2j
