// The part of XLA's FFI C ABI that a handler needs, declared from its specification.
//
// Layouts are those of FFI version 0.3 (jaxlib 0.9 and 0.10; 0.4 and 0.5 changed nothing declared here). Where 0.1 and
// 0.2 differ (user-defined state), the older layout stands beside the newer one and `abi.h` picks by the runtime's
// version. Plain structs: no thread and no GIL matters here. Nothing may be added or reordered: tests/test_abi.py
// compares every size, offset and number with the header that the installed jaxlib ships.
#pragma once
#include <cstddef>
#include <cstdint>

namespace t2j::ffi {

struct Api;
struct Error;
struct Context;
struct Future;

struct Extension {
  size_t struct_size;
  int32_t type;  // 1: metadata query
  Extension* next;
};
constexpr int32_t kMetadataExtension = 1;

struct Version {
  size_t struct_size;
  Extension* extension;
  int32_t major;
  int32_t minor;
};

enum ErrorCode : int32_t {
  kCancelled = 1,
  kFailedPrecondition = 9,
  kInternal = 13,
};

struct ErrorCreate {
  size_t struct_size;
  Extension* extension;
  const char* message;
  int32_t code;
};

// The dtypes that torch has too; XLA has more.
enum DataType : int32_t {
  kPRED = 1,
  kS8 = 2,
  kS16 = 3,
  kS32 = 4,
  kS64 = 5,
  kU8 = 6,
  kU16 = 7,
  kU32 = 8,
  kU64 = 9,
  kF16 = 10,
  kF32 = 11,
  kF64 = 12,
  kC64 = 15,
  kBF16 = 16,
  kC128 = 18,
  kF8E5M2 = 19,
  kF8E4M3FN = 20,
  kF8E5M2FNUZ = 24,
  kF8E4M3FNUZ = 25,
  kF8E8M0FNU = 33,
};

struct Span {
  const char* ptr;
  size_t len;
};

struct Scalar {
  int32_t dtype;
  void* value;
};
constexpr int32_t kAttrScalar = 3;
constexpr int32_t kAttrString = 4;

struct Buffer {
  size_t struct_size;
  Extension* extension;
  int32_t dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
};

// Arguments and results share one shape.
struct Buffers {
  size_t struct_size;
  Extension* extension;
  int64_t size;
  int32_t* types;
  Buffer** buffers;
};

struct Attrs {
  size_t struct_size;
  Extension* extension;
  int64_t size;
  int32_t* types;
  Span** names;
  void** values;
};

enum Stage : int32_t { kInstantiate = 0, kInitialize = 2, kExecute = 3 };

struct CallFrame {
  size_t struct_size;
  Extension* extension;
  const Api* api;
  Context* context;
  int32_t stage;
  Buffers args;
  Buffers rets;
  Attrs attrs;
  Future* future;
};

struct TypeId {
  int64_t value;
};
struct TypeInfo {  // from 0.2
  size_t struct_size;
  Extension* extension;
  void (*deleter)(void*);
};
struct TypeRegister {  // from 0.2; 0.1 ends before `info`
  size_t struct_size;
  Extension* extension;
  Span name;
  TypeId* type_id;
  const TypeInfo* info;
};
struct StateAccess {  // State_Set and State_Get from 0.3
  size_t struct_size;
  Extension* extension;
  Context* context;
  int32_t stage;
  TypeId* type_id;
  void* state;
};
struct StateAccess01 {  // State_Set and State_Get of 0.1 and 0.2
  size_t struct_size;
  Extension* extension;
  Context* context;
  TypeId* type_id;
  void* state;
  void (*deleter)(void*);  // State_Set of 0.1 only
};

struct StreamGet {
  size_t struct_size;
  Extension* extension;
  Context* context;
  void* stream;
};
struct RunIdGet {
  size_t struct_size;
  Extension* extension;
  Context* context;
  int64_t run_id;
};
struct DeviceOrdinalGet {
  size_t struct_size;
  Extension* extension;
  Context* context;
  int32_t ordinal;
};

constexpr uint32_t kCommandBufferCompatible = 1;  // a trait

struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
  TypeId state_type_id;  // from 0.2
};
struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

template <typename Args>
using Entry = Error* (*)(Args*);
using Unused = void*;

struct Api {
  size_t struct_size;
  Extension* extension;
  Version version;
  Unused internal_api;
  Entry<ErrorCreate> error_create;
  Unused error_get_message, error_destroy, handler_register;
  Entry<StreamGet> stream_get;
  Entry<TypeRegister> type_register;
  Unused context_get;
  Entry<void> state_set;
  Entry<void> state_get;
  Unused memory_allocate, memory_free, pool_schedule, pool_num_threads;
  Unused future_create, future_set_available, future_set_error;
  Entry<RunIdGet> run_id_get;
  Entry<DeviceOrdinalGet> device_ordinal_get;  // from jaxlib 0.6; check struct_size
};

}  // namespace t2j::ffi
