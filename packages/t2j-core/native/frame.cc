// Compares call frames with sites; see `frame.h`. Runs at every call, before anything else: it may neither allocate nor
// touch Python unless a buffer differs. It takes a few nanoseconds a buffer. Of a site it reads only what never
// changes. The text of an error may throw `std::bad_alloc`, which the handler catches.
#include "frame.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "abi.h"

namespace t2j {

namespace {

// The column `short` of the table in `_base/dtypes.py`.
constexpr struct {
  int32_t dtype;
  const char* name;
} kNames[] = {
    {ffi::kPRED, "bool"},
    {ffi::kS8, "i8"},
    {ffi::kS16, "i16"},
    {ffi::kS32, "i32"},
    {ffi::kS64, "i64"},
    {ffi::kU8, "u8"},
    {ffi::kU16, "u16"},
    {ffi::kU32, "u32"},
    {ffi::kU64, "u64"},
    {ffi::kF16, "f16"},
    {ffi::kBF16, "bf16"},
    {ffi::kF32, "f32"},
    {ffi::kF64, "f64"},
    {ffi::kC64, "c64"},
    {ffi::kC128, "c128"},
    {ffi::kF8E4M3FN, "f8_e4m3fn"},
    {ffi::kF8E5M2, "f8_e5m2"},
    {ffi::kF8E4M3FNUZ, "f8_e4m3fnuz"},
    {ffi::kF8E8M0FNU, "f8_e8m0fnu"},
    {ffi::kF8E5M2FNUZ, "f8_e5m2fnuz"},
};

// For example `f32[8,3]`.
std::string aval(int32_t dtype, const int64_t* dims, int64_t rank) {
  std::string text = "dtype " + std::to_string(dtype) + " of XLA";
  for (const auto& row : kNames)
    if (row.dtype == dtype) text = row.name;
  text += "[";
  for (int64_t i = 0; i < rank; ++i) text += (i ? "," : "") + (dims ? std::to_string(dims[i]) : "?");
  return text + "]";
}

std::string aval(const ffi::Buffer* buffer) {
  if (!buffer) return "no buffer";
  bool is_empty = false;
  for (int64_t i = 0; buffer->dims && i < buffer->rank; ++i) is_empty |= buffer->dims[i] == 0;
  return aval(buffer->dtype, buffer->dims, buffer->rank) + (buffer->data || is_empty ? "" : " without memory");
}

ffi::Error* mismatch(const ffi::Api* api, const std::string& what, const std::string& expected,
                     const std::string& got) {
  std::string message =
      what + " of a compiled program differs from what its torch function was traced with.\n  Expected: " + expected +
      "\n  Got:      " + got + "\nTrace the function again; export the program again if it comes from another process.";
  return ffi::make_error(api, ffi::kInternal, message.c_str());
}

bool fits(const Operand& operand, const ffi::Buffer* buffer) {
  const dl::Tensor& tensor = operand.tensor;
  return buffer && buffer->dtype == operand.dtype && buffer->rank == tensor.ndim &&
         (buffer->dims || tensor.ndim == 0) && (buffer->data || operand.bytes == 0) &&
         std::equal(tensor.shape, tensor.shape + tensor.ndim, buffer->dims);
}

ffi::Error* check_buffers(const ffi::Api* api, const char* kind, const std::vector<Operand>& wanted,
                          const ffi::Buffers& found) {
  if (found.size != static_cast<int64_t>(wanted.size()))
    return mismatch(api, std::string("The number of ") + kind + "s", std::to_string(wanted.size()),
                    std::to_string(found.size));
  for (size_t i = 0; i < wanted.size(); ++i) {
    const ffi::Buffer* buffer = found.buffers ? found.buffers[i] : nullptr;
    if (fits(wanted[i], buffer)) continue;
    const dl::Tensor& tensor = wanted[i].tensor;
    return mismatch(api, std::string(kind) + " " + std::to_string(i), aval(wanted[i].dtype, tensor.shape, tensor.ndim),
                    aval(buffer));
  }
  return nullptr;
}

}  // namespace

ffi::Error* check_frame(const Site& site, const ffi::CallFrame& frame) {
  if (ffi::Error* error = check_buffers(frame.api, "operand", site.operands, frame.args)) return error;
  return check_buffers(frame.api, "result", site.results, frame.rets);
}

int32_t dtype_by_name(const char* name) {
  for (const auto& row : kNames)
    if (std::strcmp(row.name, name) == 0) return row.dtype;
  return -1;
}

}  // namespace t2j
