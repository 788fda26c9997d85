// The Python module `t2j_core._native`, whose stub is `_native.pyi`. Only `_lowering/native.py` imports it.
//
// Python calls these functions on its own threads with the GIL held: most of them once at import, the rest for tests
// and statistics. The call path is in `handler.cc`. pybind11 turns a C++ exception into a Python one; only this file
// uses it.
#include <pybind11/pybind11.h>

#include <chrono>
#include <memory>
#include <thread>

#include "abi.h"
#include "borrow.h"
#include "handler.h"
#include "hooks.h"
#include "site.h"
#include "storage.h"
#include "turn.h"
#include "windows.h"

namespace py = pybind11;
using namespace t2j;

namespace {

// The object, or the Python error that is set, as a C++ exception that pybind11 raises again.
py::object checked(Ref object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object.release());
}

void setup(const py::object& hooks) {
  if (!set_hooks(hooks.ptr())) throw py::error_already_set();
}

// For the test at import whether exchanging works; the call path uses `storage::exchange_memory`.
bool exchange_memory(const py::object& a, const py::object& b) { return storage::exchange_memory(a.ptr(), b.ptr()); }

std::unique_ptr<Windows> make_windows(const py::list& tensors) {
  auto windows = std::make_unique<Windows>();
  if (!windows->make(tensors.ptr())) throw py::error_already_set();
  return windows;
}

void open_windows(Windows& windows, const py::list& tensors) {
  if (!windows.open(tensors.ptr())) throw py::error_already_set();
}

py::dict handlers() {
  auto capsule = [](ffi::Error* (*handler)(ffi::CallFrame*) noexcept) {
    return py::capsule(reinterpret_cast<void*>(handler));
  };
  py::dict table;
  table["instantiate"] = capsule(&instantiate);
  table["cpu"] = capsule(&execute_cpu);
  table["cuda"] = capsule(&execute_cuda);
  table["rocm"] = capsule(&execute_rocm);
  table["instantiate captured"] = capsule(&instantiate_captured);
  table["initialize captured"] = capsule(&initialize_captured);
  table["cuda captured"] = capsule(&execute_captured);
  table["nothing"] = capsule(&execute_nothing);
  return table;
}

// Refuses new calls and waits, without the GIL, for those that run.
void close_gate() {
  gate.store(kClosing);
  py::gil_scoped_release unlocked;
  while (calls_in_flight.load() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

void after_fork() {
  gate.store(kForked);
  calls_in_flight.store(0);
}

py::dict counters() {
  py::dict table;
  table["live_sites"] = live_sites.load();
  table["escaped_calls"] = escaped_calls.load();
  table["calls_in_flight"] = calls_in_flight.load();
  return table;
}

// Sizes and offsets of the ABI declarations, for the test that compares them with the installed headers.
py::dict abi_layout() {
  py::dict table;
#define T2J_SIZE(type) table[#type] = sizeof(type)
#define T2J_FIELD(type, field) table[#type "." #field] = offsetof(type, field)
#include "abi_layout.inc"
#undef T2J_SIZE
#undef T2J_FIELD
  return table;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Handlers that XLA calls to run torch functions.";
  m.def("setup", &setup, py::arg("hooks"), "Hand over the Python objects that the call path uses.");
  m.def("hook_list", [] { return checked(hook_list()); }, "The hooks: {name: (kind, number of arguments)}.");
  m.def(
      "learn_storage_layout", [](const py::tuple& samples) { return storage::learn_layout(samples.ptr()); },
      py::arg("samples"), "Find out where this torch keeps the memory of tensors.");
  m.def("exchange_memory", &exchange_memory, py::arg("a"), py::arg("b"), "Exchange the memory of two storages.");
  m.def("has_windows", &Windows::are_known, "Whether this torch has what windows need.");
  py::class_<Windows>(m, "Windows", "Tensors that show the memory of one call at a time.")
      .def(py::init(&make_windows), py::arg("tensors"))
      .def_property_readonly("tensors", [](const Windows& w) { return py::reinterpret_borrow<py::list>(w.tensors()); })
      .def("open", &open_windows, py::arg("tensors"))
      .def("close", [](Windows& w, uintptr_t blank) { w.close(reinterpret_cast<void*>(blank)); }, py::arg("blank"))
      .def("owners", [](const Windows& w) { return checked(w.owners()); })
      .def("sharing", [](const Windows& w, const py::list& l) { return checked(w.sharing(l.ptr())); }, py::arg("tensors"))
      .def("has_own", &Windows::has_own, py::arg("place"))
      .def("move", [](Windows& w, size_t i, const py::object& s) { return w.move(i, s.ptr()); }, py::arg("place"),
           py::arg("storage"));
  m.def("handlers", &handlers, "Capsules of the FFI handlers, by stage or platform.");
  m.def("close_gate", &close_gate, "Refuse new calls and wait for the running ones.");
  m.def("after_fork", &after_fork, "Refuse calls in a forked child.");
  m.def(
      "current_pair", [] { return checked(current_pair()); },
      "The paired call that this thread is in: (execution, device, pair), or None.");
  m.def(
      "set_turn_patience",
      [](double seconds) { return Turn::set_patience(std::chrono::duration<double>(seconds)).count(); },
      py::arg("seconds"), "How long a small call waits for another one, for tests; returns what it was before.");
  m.def("call_depth", &call_depth, "In how many nested calls of torch functions this thread is.");
  m.def("counters", &counters, "What is alive: call sites, calls with escaped tensors, calls in flight.");
  m.def("abi_layout", &abi_layout, "Sizes and offsets of the ABI declarations.");
  m.def(
      "uses_exchange_api", [] { return static_cast<bool>(hooks.exchange); },
      "Whether tensors go through torch's exchange table.");
  m.def(
      "set_newest_known_minor", [](int minor) { ffi::newest_known_minor = minor; }, py::arg("minor"),
      "Treat runtimes above this FFI minor version as unknown (for tests).");
}
