// The DLPack C ABI (version 1) and torch's exchange table over it, declared from their specification.
//
// Plain structs: no thread and no GIL matters here, but the functions in `ExchangeApi` need the GIL. Nothing may be
// added or reordered. tests/test_abi.py compares every size and offset with the header that the installed torch ships.
#pragma once
#include <cstddef>
#include <cstdint>

namespace t2j::dl {

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2, kROCM = 10 };
enum TypeCode : uint8_t { kComplex = 5, kBool = 6 };  // those that need care; `_base/dtypes.py` has all

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct Managed {  // what a capsule "dltensor" holds
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

struct ExchangeApi {  // `torch.Tensor.__dlpack_c_exchange_api__`, torch 2.10 and newer
  Version version;
  ExchangeApi* previous;
  void* allocate;
  int (*from_object)(void* object, ManagedVersioned** out);
  int (*to_object)(ManagedVersioned* stolen, void** out);
  int (*borrow_from_object)(void* object, Tensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out);
};

}  // namespace t2j::dl
