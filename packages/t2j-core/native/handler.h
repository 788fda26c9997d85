#pragma once
#include <Python.h>

#include <atomic>
#include <cstdint>

#include "xla_ffi.h"

namespace t2j {

ffi::Error* instantiate(ffi::CallFrame* frame) noexcept;
ffi::Error* execute_cpu(ffi::CallFrame* frame) noexcept;
ffi::Error* execute_cuda(ffi::CallFrame* frame) noexcept;
ffi::Error* execute_rocm(ffi::CallFrame* frame) noexcept;
ffi::Error* execute_nothing(ffi::CallFrame* frame) noexcept;  // the floor that benchmarks compare with

// How many calls of torch functions this thread is inside of.
int call_depth();

// The paired call this thread is in, as (execution, device, pair): a new reference, None in any other. Needs the GIL.
PyObject* current_pair();

enum Gate : int { kOpen = 0, kClosing = 1, kForked = 2 };
extern std::atomic<int> gate;
extern std::atomic<int64_t> calls_in_flight;

}  // namespace t2j
