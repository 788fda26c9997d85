/* A CUDA runtime without a GPU, for tests of the order of calls.

   True: which functions are called, on which thread, device and stream, in which order; events and what they were
   recorded on; copies and memsets, which happen at once in host memory; how much memory is allocated; which calls a
   capture forbids, and errors that a test asks for. Not true: kernels do nothing, so what they should have written has
   any value, and nothing is ever pending. A copy of fewer than four bytes to the host carries flags that a kernel
   should have computed, so the test chooses their value (`fake_flags`).

   Functions that are not here come from `scripts/cuda_stubs.py`, and report that there is no device. `runtime.py` calls
   the functions `fake_*`. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEVICES = 2, FAILURES = 8, CAPTURES = 8, MEMBERS = 16 };

typedef unsigned long long Handle;

/* One call, as `Record` in `runtime.py` reads it. */
typedef struct {
  const char* name;
  Handle stream, event, recorded_on; /* `recorded_on`: the stream that the event of a wait was recorded on */
  uint64_t size, thread;
  int32_t device, error;
} Record;

struct CUevent_st {
  cudaStream_t recorded_on;
  Handle capture; /* of that stream when it was recorded; 0 if there was none */
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread int device = 0;
static __thread cudaError_t last_error = cudaSuccess;
static __thread enum cudaStreamCaptureMode interaction = cudaStreamCaptureModeGlobal;

/* --- the log ----------------------------------------------------------------------------------------------------- */

static Record* records = NULL;
static size_t length = 0, capacity = 0;

static struct {
  const char* name;
  int after, times; /* `after` more calls succeed, then `times` calls fail */
  cudaError_t error;
} failures[FAILURES];

static cudaError_t planned_failure(const char* name) {
  for (int i = 0; i < FAILURES; ++i) {
    if (!failures[i].times || strcmp(failures[i].name, name)) continue;
    if (failures[i].after-- > 0) continue;
    --failures[i].times;
    return failures[i].error;
  }
  return cudaSuccess;
}

/* Notes a call, and returns its error: the one that a test has planned, or `error`. */
static cudaError_t note(Record record, cudaError_t error) {
  pthread_mutex_lock(&mutex);
  cudaError_t planned = planned_failure(record.name);
  record.error = planned ? planned : error;
  record.thread = gettid();
  record.device = device;
  if (length == capacity) records = realloc(records, (capacity = 2 * capacity + 64) * sizeof *records);
  records[length++] = record;
  pthread_mutex_unlock(&mutex);
  if (record.error) last_error = record.error;
  return record.error;
}

#define NOTE(error, ...) note((Record){.name = __func__, ##__VA_ARGS__}, error)

/* Moves at most `most` of the oldest calls to `out`, and returns how many. */
size_t fake_log_take(Record* out, size_t most) {
  pthread_mutex_lock(&mutex);
  size_t count = length < most ? length : most;
  memcpy(out, records, count * sizeof *out);
  memmove(records, records + count, (length - count) * sizeof *records);
  length -= count;
  pthread_mutex_unlock(&mutex);
  return count;
}

/* Lets `after` more calls of a function succeed, and then `times` calls fail. False if too much is planned. */
int fake_fail(const char* name, int after, int times, cudaError_t error) {
  for (int i = 0; i < FAILURES; ++i) {
    if (failures[i].times) continue;
    free((void*)failures[i].name);
    failures[i].name = strdup(name);
    failures[i].after = after, failures[i].times = times, failures[i].error = error;
    return 1;
  }
  return 0;
}

/* Drops the failures that have not come, and returns how many. */
int fake_fail_no_more(void) {
  int count = 0;
  for (int i = 0; i < FAILURES; ++i) count += failures[i].times, failures[i].times = 0;
  return count;
}

/* --- capture: the rules of `cudaStreamBeginCapture` and `cudaThreadExchangeStreamCaptureMode` ------------------------

   Streams of XLA and torch are not blocking: work on the default stream does not wait for them, and is not refused. */

typedef struct {
  Handle id; /* 0: free */
  enum cudaStreamCaptureMode mode;
  pid_t thread;
  int is_invalidated;
  cudaStream_t members[MEMBERS]; /* the stream that it began on, and those that have joined it */
  int count;
} Capture;

static Capture captures[CAPTURES];
static Handle last_capture = 0;

static Capture* capture_with(Handle id) {
  for (int i = 0; i < CAPTURES; ++i)
    if (id && captures[i].id == id) return &captures[i];
  return NULL;
}

static Capture* capture_of(cudaStream_t stream) {
  for (int i = 0; i < CAPTURES; ++i)
    for (int k = 0; captures[i].id && k < captures[i].count; ++k)
      if (captures[i].members[k] == stream) return &captures[i];
  return NULL;
}

static cudaError_t invalidate(Capture* capture, cudaError_t error) {
  capture->is_invalidated = 1;
  return error;
}

/* What a call returns that is "potentially unsafe" while a capture goes on. */
static cudaError_t unsafe(void) {
  for (int i = 0; i < CAPTURES; ++i) {
    Capture* capture = &captures[i];
    if (!capture->id || interaction == cudaStreamCaptureModeRelaxed) continue;
    int is_own = capture->thread == gettid() && capture->mode != cudaStreamCaptureModeRelaxed;
    int is_global = capture->mode == cudaStreamCaptureModeGlobal && interaction == cudaStreamCaptureModeGlobal;
    if (is_own || is_global) return invalidate(capture, cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

/* What it returns to wait for a stream, or to ask whether it is done. */
static cudaError_t waiting_for(cudaStream_t stream) {
  Capture* capture = capture_of(stream);
  return capture ? invalidate(capture, cudaErrorStreamCaptureUnsupported) : unsafe();
}

/* The same for an event. */
static cudaError_t waiting_for_event(cudaEvent_t event) {
  Capture* capture = capture_with(event->capture);
  return capture ? invalidate(capture, cudaErrorCapturedEvent) : unsafe();
}

/* A wait inside a capture must be for an event of it; a wait for such an event joins its capture. */
static cudaError_t joining(cudaStream_t stream, cudaEvent_t event) {
  Capture *own = capture_of(stream), *other = capture_with(event->capture);
  if (own == other) return cudaSuccess;
  if (own) return invalidate(own, cudaErrorStreamCaptureIsolation);
  if (!stream || other->count == MEMBERS) return invalidate(other, cudaErrorStreamCaptureImplicit);
  other->members[other->count++] = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  for (int i = 0; stream && !capture_of(stream) && i < CAPTURES; ++i) {
    if (captures[i].id) continue;
    captures[i] = (Capture){++last_capture, mode, gettid(), 0, {stream}, 1};
    return NOTE(cudaSuccess, .stream = (Handle)stream);
  }
  return NOTE(cudaErrorIllegalState, .stream = (Handle)stream);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Capture* capture = capture_of(stream);
  cudaError_t error = !capture                  ? cudaErrorIllegalState
                      : capture->is_invalidated ? cudaErrorStreamCaptureInvalidated
                                                : cudaSuccess;
  if (capture) capture->id = 0;
  if (graph) *graph = NULL; /* there is nothing to launch */
  return NOTE(error, .stream = (Handle)stream);
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus* status, Handle* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
  Capture* capture = capture_of(stream);
  *status = !capture                  ? cudaStreamCaptureStatusNone
            : capture->is_invalidated ? cudaStreamCaptureStatusInvalidated
                                      : cudaStreamCaptureStatusActive;
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = NULL;
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (count) *count = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(stream, status, NULL, NULL, NULL, NULL, NULL);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* mode) {
  enum cudaStreamCaptureMode before = interaction;
  interaction = *mode;
  *mode = before;
  return cudaSuccess;
}

/* --- errors and devices -------------------------------------------------------------------------------------------- */

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
const char* cudaGetErrorName(cudaError_t error) { return error ? "an error" : "cudaSuccess"; }
const char* cudaGetErrorString(cudaError_t error) {
  static __thread char text[64];
  snprintf(text, sizeof text, "error %d of the fake CUDA runtime", error);
  return text;
}

cudaError_t cudaGetDeviceCount(int* count) { return *count = DEVICES, cudaSuccess; }
cudaError_t cudaGetDevice(int* out) { return *out = device, cudaSuccess; }
cudaError_t cudaSetDevice(int id) {
  if (id < 0 || id >= DEVICES) return last_error = cudaErrorInvalidDevice;
  if (id != device) NOTE(cudaSuccess, .size = id);
  device = id;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int id, int peer) { return *can = id != peer, cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) { return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = -5, cudaSuccess;
}

static size_t memory = (size_t)1 << 33; /* of each device */

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* out, int id) {
  *out = (struct cudaDeviceProp){.name = "no GPU",
                                 .major = 9,
                                 .totalGlobalMem = memory,
                                 .multiProcessorCount = 132,
                                 .warpSize = 32,
                                 .maxThreadsPerBlock = 1024,
                                 .maxThreadsPerMultiProcessor = 2048,
                                 .maxThreadsDim = {1024, 1024, 64},
                                 .maxGridSize = {INT32_MAX, 65535, 65535},
                                 .sharedMemPerBlock = 48 << 10,
                                 .sharedMemPerBlockOptin = 227 << 10,
                                 .sharedMemPerMultiprocessor = 228 << 10,
                                 .regsPerBlock = 1 << 16,
                                 .regsPerMultiprocessor = 1 << 16,
                                 .l2CacheSize = 50 << 20};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int id) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : attribute == cudaDevAttrMaxThreadsPerBlock ? 1024 : 0;
  return cudaSuccess;
}

/* --- memory: that of the host ----------------------------------------------------------------------------------------- */

typedef struct {
  size_t size, device;
} Header; /* before each allocation of a device */
enum { ALIGNMENT = 512 };
static size_t used[DEVICES];
static unsigned char flags = 1;

void fake_flags(int value) { flags = value; }
void fake_memory(size_t size) { memory = size; }

static void* aligned(size_t size) { return aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT); }

cudaError_t cudaMalloc(void** out, size_t size) {
  cudaError_t error = unsafe();
  if (!error && __atomic_load_n(&used[device], __ATOMIC_SEQ_CST) + size > memory) error = cudaErrorMemoryAllocation;
  if ((error = NOTE(error, .size = size))) return error;
  char* block = aligned(ALIGNMENT + size);
  *(Header*)block = (Header){size, device};
  __atomic_add_fetch(&used[device], size, __ATOMIC_SEQ_CST);
  *out = memset(block + ALIGNMENT, 0, size);
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  if (!data) return cudaSuccess;
  Header* header = (Header*)((char*)data - ALIGNMENT);
  NOTE(unsafe(), .size = header->size);
  __atomic_sub_fetch(&used[header->device], header->size, __ATOMIC_SEQ_CST);
  free(header);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  size_t taken = __atomic_load_n(&used[device], __ATOMIC_SEQ_CST);
  *available = taken < memory ? memory - taken : 0;
  *total = memory;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** out, size_t size, unsigned kind) {
  cudaError_t error = NOTE(unsafe(), .size = size);
  if (!error) *out = aligned(size);
  return error;
}
cudaError_t cudaFreeHost(void* data) {
  free(data);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* out, const void* data) {
  *out = (struct cudaPointerAttributes){cudaMemoryTypeDevice, device, (void*)data, NULL};
  return cudaSuccess;
}

static void copy(void* to, const void* from, size_t size, enum cudaMemcpyKind kind) {
  if (kind == cudaMemcpyDeviceToHost && size < 4)
    memset(to, flags, size);
  else
    memcpy(to, from, size);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, enum cudaMemcpyKind kind) {
  cudaError_t error = NOTE(unsafe(), .size = size);
  if (!error) copy(to, from, size, kind);
  return error;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  cudaError_t error = NOTE(cudaSuccess, .stream = (Handle)stream, .size = size);
  if (!error && !capture_of(stream)) copy(to, from, size, kind);
  return error;
}
cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t size,
                                cudaStream_t stream) {
  cudaError_t error = NOTE(cudaSuccess, .stream = (Handle)stream, .size = size);
  if (!error && !capture_of(stream)) memcpy(to, from, size);
  return error;
}
cudaError_t cudaMemset(void* data, int value, size_t size) {
  cudaError_t error = NOTE(unsafe(), .size = size);
  if (!error) memset(data, value, size);
  return error;
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t size, cudaStream_t stream) {
  cudaError_t error = NOTE(cudaSuccess, .stream = (Handle)stream, .size = size);
  if (!error && !capture_of(stream)) memset(data, value, size);
  return error;
}

/* --- streams and events -------------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned kind, int priority) {
  *out = aligned(1);
  return NOTE(cudaSuccess, .stream = (Handle)*out);
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return NOTE(waiting_for(stream), .stream = (Handle)stream); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return NOTE(waiting_for(stream), .stream = (Handle)stream); }
cudaError_t cudaDeviceSynchronize(void) { return NOTE(unsafe(), .stream = 0); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned kind) {
  *out = calloc(1, sizeof **out);
  return NOTE(cudaSuccess, .event = (Handle)*out);
}
cudaError_t cudaEventCreate(cudaEvent_t* out) { return cudaEventCreateWithFlags(out, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  cudaError_t error = NOTE(cudaSuccess, .event = (Handle)event, .stream = (Handle)stream);
  if (error) return error;
  Capture* capture = capture_of(stream);
  event->recorded_on = stream;
  event->capture = capture ? capture->id : 0;
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned kind) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned kind) {
  return NOTE(joining(stream, event), .stream = (Handle)stream, .event = (Handle)event,
              .recorded_on = (Handle)event->recorded_on);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return NOTE(waiting_for_event(event), .event = (Handle)event); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return NOTE(waiting_for_event(event), .event = (Handle)event); }

/* --- kernels, which do nothing --------------------------------------------------------------------------------------- */

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
  return NOTE(cudaSuccess, .stream = (Handle)stream);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* kernel) { return *out = (void*)kernel, cudaSuccess; }

static __thread struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} configuration; /* of the launch `kernel<<<...>>>` that comes next */

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration.grid = grid, configuration.block = block;
  configuration.shared = shared, configuration.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid, *block = configuration.block;
  *shared = configuration.shared, *(void**)stream = configuration.stream;
  return cudaSuccess;
}
void** __cudaRegisterFatBinary(void* binary) {
  static void* handle[1];
  return handle;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* out, const void* kernel) {
  *out = (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024, .numRegs = 32};
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count, const void* kernel, int threads, size_t shared) {
  return *count = 2, cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count, const void* kernel, int threads,
                                                                   size_t shared, unsigned kind) {
  return *count = 2, cudaSuccess;
}
