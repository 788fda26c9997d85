// The Python module: a few functions, called once each. The call path is in `handler.cc`.
#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

#include "borrow.h"
#include "handler.h"
#include "loans.h"
#include "site.h"
#include "state.h"
#include "storage.h"

namespace py = pybind11;
using namespace t2j;

namespace {

void setup(const py::dict& table) {
  auto take = [&](const char* name) { return py::object(table[name]).release().ptr(); };
  py::object exchange = table["exchange"];
  if (!exchange.is_none()) {
    auto* api = static_cast<const dl::ExchangeApi*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (!api) throw py::error_already_set();
    while (api && api->version.major != 1) api = api->previous;
    hooks.exchange = api;  // an unknown table: capsules still work
  }
  py::object version = table["version"];
  if (Py_TYPE(version.ptr()) != &PyGetSetDescr_Type) throw py::type_error("Tensor._version is not a C attribute");
  const PyGetSetDef* attribute = reinterpret_cast<PyGetSetDescrObject*>(version.ptr())->d_getset;
  hooks.version_getter = attribute->get;
  hooks.version_closure = attribute->closure;
  hooks.tensor_type = take("tensor_type");
  hooks.parameter_type = take("parameter_type");
  hooks.from_dlpack = take("from_dlpack");
  hooks.to_dlpack = take("to_dlpack");
  hooks.is_conj = take("is_conj");
  hooks.is_neg = take("is_neg");
  hooks.clone = take("clone");
  hooks.copy = take("copy");
  hooks.copy_all = take("copy_all");
  hooks.storage = take("storage");
  hooks.storage_uses = take("storage_uses");
  hooks.is_grad_enabled = take("is_grad_enabled");
  hooks.set_grad_enabled = take("set_grad_enabled");
  hooks.state_getters = take("state_getters");
  hooks.enter_state = take("enter_state");
  hooks.leave_state = take("leave_state");
  hooks.enter_stream = take("enter_stream");
  hooks.leave_stream = take("leave_stream");
  hooks.resolve = take("resolve");
  hooks.check_output = take("check_output");
  hooks.check_results = take("check_results");
  hooks.report = take("report");
  hooks.private_copy = take("private_copy");
  hooks.digest = take("digest");
  hooks.has_same_bits = take("has_same_bits");
  hooks.compare_later = take("compare_later");
  hooks.differing = take("differing");
  hooks.operand_written = take("operand_written");
  hooks.argument_kept = take("argument_kept");
  hooks.operand_in_cycle = take("operand_in_cycle");
  hooks.movable_copy = take("movable_copy");
  hooks.raise_escaped = take("raise_escaped");
  hooks.stop_redirecting = take("stop_redirecting");
  hooks.collect_garbage = take("collect_garbage");
  most_checked_bytes = py::cast<int64_t>(table["most_checked_bytes"]);
}

// For the self-test of `storage.h`; calls use it from C++.
bool exchange_memory(const py::object& a, const py::object& b) { return storage::exchange_memory(a.ptr(), b.ptr()); }

py::dict handlers() {
  auto capsule = [](ffi::Error* (*handler)(ffi::CallFrame*) noexcept) {
    return py::capsule(reinterpret_cast<void*>(handler));
  };
  py::dict table;
  table["instantiate"] = capsule(&instantiate);
  table["cpu"] = capsule(&execute_cpu);
  table["cuda"] = capsule(&execute_cuda);
  table["rocm"] = capsule(&execute_rocm);
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
  m.def("setup", &setup, py::arg("table"), "Hand over the Python objects that the call path uses.");
  m.def(
      "learn_storage_layout", [](const py::tuple& samples) { return storage::learn_layout(samples.ptr()); },
      py::arg("samples"), "Find out where this torch keeps the memory of tensors.");
  m.def("exchange_memory", &exchange_memory, py::arg("a"), py::arg("b"), "Exchange the memory of two storages.");
  m.def("handlers", &handlers, "Capsules of the FFI handlers, by stage or platform.");
  m.def("close_gate", &close_gate, "Refuse new calls and wait for the running ones.");
  m.def("after_fork", &after_fork, "Refuse calls in a forked child.");
  m.def(
      "current_pair", [] { return py::reinterpret_steal<py::object>(current_pair()); },
      "The paired call that this thread is in: (execution, device, pair), or None.");
  m.def("call_depth", &call_depth, "How many calls of torch functions this thread is inside of.");
  m.def("counters", &counters, "What is alive: call sites, calls with escaped tensors, calls in flight.");
  m.def("abi_layout", &abi_layout, "Sizes and offsets of the ABI declarations.");
  m.def(
      "uses_exchange_api", [] { return hooks.exchange != nullptr; },
      "Whether tensors go through torch's exchange table.");
  m.def(
      "set_newest_known_minor", [](int minor) { ffi::newest_known_minor = minor; }, py::arg("minor"),
      "Treat runtimes above this FFI minor version as unknown (for tests).");
}
