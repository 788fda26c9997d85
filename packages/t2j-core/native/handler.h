// The entry points of the native part: what XLA calls for each custom call, and the little that Python asks of it.
//
// XLA calls a handler on any thread: on one of its own, or on the thread that called JAX. It does not hold the GIL
// then. `instantiate` comes once for each executable, `execute_*` for each call. No C++ exception and no Python error
// leaves one of them, and none asks for the GIL unless the gate is open.
//
// `*_captured` are those of calls that XLA may put into a command buffer: it captures a CUDA graph of what `execute`
// enqueues, and launches the graph again without a call. `initialize` comes before each execution, captured or not.
#pragma once
#include <Python.h>

#include <atomic>
#include <cstdint>

#include "ref.h"
#include "xla_ffi.h"

namespace t2j {

ffi::Error* instantiate(ffi::CallFrame* frame) noexcept;
ffi::Error* execute_cpu(ffi::CallFrame* frame) noexcept;
ffi::Error* execute_cuda(ffi::CallFrame* frame) noexcept;
ffi::Error* execute_rocm(ffi::CallFrame* frame) noexcept;
ffi::Error* instantiate_captured(ffi::CallFrame* frame) noexcept;
ffi::Error* initialize_captured(ffi::CallFrame* frame) noexcept;
ffi::Error* execute_captured(ffi::CallFrame* frame) noexcept;
ffi::Error* execute_nothing(ffi::CallFrame* frame) noexcept;  // does nothing: what benchmarks compare with

// In how many calls of torch functions this thread is, one nested in the other.
int call_depth();

// The paired call that this thread is in, as (execution, device, pair); None in any other. Needs the GIL.
Ref current_pair();

// Whether handlers may take the GIL. Closed at exit and in a forked child, and never opened again.
enum Gate : int { kOpen = 0, kClosing = 1, kForked = 2 };
extern std::atomic<int> gate;
extern std::atomic<int64_t> calls_in_flight;

}  // namespace t2j
