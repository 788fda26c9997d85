// What moved between versions of the FFI ABI: the version handshake and user-defined state.
#pragma once
#include "xla_ffi.h"

namespace t2j::ffi {

constexpr int kNewestLayout = 3;  // versions 0.4 and 0.5 only append to it

// A runtime newer than this one is served without state, through the parts that never changed (see `handler.cc`).
extern int newest_known_minor;

// jaxlib up to 0.7 sends the metadata query with a null table.
inline int minor_version(const Api* api) { return api ? api->version.minor : 1; }
inline bool has_state(const Api* api) { return minor_version(api) <= newest_known_minor; }

Error* make_error(const Api* api, ErrorCode code, const char* message);

// Answers XLA's question for version, traits and state type. True if that was the question.
bool answer_metadata(CallFrame* frame, bool stateful, Error** error);

Error* set_state(CallFrame* frame, void* state);
Error* get_state(CallFrame* frame, void** state);

// Called by XLA when the executable that owns the state goes; defined in `handler.cc`.
void delete_state(void* state);

}  // namespace t2j::ffi
