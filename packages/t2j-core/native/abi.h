// What differs between versions of the FFI ABI: the version handshake and user-defined state; also how errors are made.
// Called by the handlers on any thread of XLA, with or without the GIL. Uses no Python object and throws no exception
// of its own; `std::map` may throw `std::bad_alloc`, which the handlers catch.
#pragma once
#include "xla_ffi.h"

namespace t2j::ffi {

constexpr int kNewestLayout = 3;  // versions 0.4 and 0.5 only append to it

// With a runtime that is newer than this, the handlers use no state: they build a site at each call, from the parts of
// the ABI that have never changed.
extern int newest_known_minor;

// jaxlib up to 0.7 sends the metadata query with a null table.
inline int minor_version(const Api* api) { return api ? api->version.minor : 1; }
inline bool has_state(const Api* api) { return minor_version(api) <= newest_known_minor; }

Error* make_error(const Api* api, ErrorCode code, const char* message);

// If XLA asks for version, traits and state type: fills them in and returns true. False for any other call.
bool handle_metadata_query(CallFrame* frame, bool stateful, Error** error, uint32_t traits = 0);

// The state of the executable that the frame belongs to. XLA owns it.
Error* set_state(CallFrame* frame, void* state);
Error* get_state(CallFrame* frame, void** state);

// XLA calls this when it deletes the executable that owns the state; defined in `handler.cc`. It takes the GIL.
void delete_state(void* state);

}  // namespace t2j::ffi
