// The version handshake and the state of executables, for each version of the FFI ABI; see `abi.h`. Called on any
// thread, with or without the GIL, so nothing here may use a Python object. A mutex guards the one shared table;
// nothing that waits for the GIL may run while it is held.
#include "abi.h"

#include <algorithm>
#include <map>
#include <mutex>

namespace t2j::ffi {

int newest_known_minor = 5;

Error* make_error(const Api* api, ErrorCode code, const char* message) {
  ErrorCreate args{sizeof(ErrorCreate), nullptr, message, code};
  return api->error_create(&args);
}

namespace {

// Each instance of XLA (jaxlib's and that of each plugin) has its own numbers for types.
Error* register_state_type(const Api* api, TypeId** out) {
  static std::mutex mutex;
  static std::map<const Api*, TypeId> ids;
  static const TypeInfo info{sizeof(TypeInfo), nullptr, &delete_state};
  thread_local const Api* last_api = nullptr;
  thread_local TypeId* last_id = nullptr;
  if (api != last_api) {
    std::lock_guard<std::mutex> lock(mutex);
    auto [entry, is_new] = ids.try_emplace(api, TypeId{0});
    if (is_new) {
      static const char name[] = "t2j_core.site";
      bool has_info = minor_version(api) >= 2;
      TypeRegister args{has_info ? sizeof(TypeRegister) : offsetof(TypeRegister, info),
                        nullptr,
                        {name, sizeof(name) - 1},
                        &entry->second,
                        &info};
      if (Error* error = api->type_register(&args)) {
        ids.erase(entry);
        return error;
      }
    }
    last_api = api;
    last_id = &entry->second;
  }
  *out = last_id;
  return nullptr;
}

}  // namespace

bool handle_metadata_query(CallFrame* frame, bool stateful, Error** error, uint32_t traits) {
  *error = nullptr;
  if (!frame->extension || frame->extension->type != kMetadataExtension) return false;
  Metadata* metadata = reinterpret_cast<MetadataExtension*>(frame->extension)->metadata;
  int minor = minor_version(frame->api);
  metadata->version = {sizeof(Version), nullptr, 0, std::min(minor, kNewestLayout)};
  metadata->traits = traits;
  if (minor >= 2) {
    metadata->state_type_id = {0};
    if (stateful && has_state(frame->api)) {
      TypeId* id = nullptr;
      *error = register_state_type(frame->api, &id);
      if (!*error) metadata->state_type_id = *id;
    }
  }
  return true;
}

Error* set_state(CallFrame* frame, void* state) {
  TypeId* id = nullptr;
  if (Error* error = register_state_type(frame->api, &id)) return error;
  int minor = minor_version(frame->api);
  if (minor >= 3) {
    StateAccess args{sizeof(StateAccess), nullptr, frame->context, kInstantiate, id, state};
    return frame->api->state_set(&args);
  }
  StateAccess01 args{minor >= 2 ? offsetof(StateAccess01, deleter) : sizeof(StateAccess01),
                     nullptr,
                     frame->context,
                     id,
                     state,
                     &delete_state};
  return frame->api->state_set(&args);
}

Error* get_state(CallFrame* frame, void** state) {
  TypeId* id = nullptr;
  if (Error* error = register_state_type(frame->api, &id)) return error;
  if (minor_version(frame->api) >= 3) {
    StateAccess args{sizeof(StateAccess), nullptr, frame->context, kInstantiate, id, nullptr};
    Error* error = frame->api->state_get(&args);
    *state = args.state;
    return error;
  }
  StateAccess01 args{offsetof(StateAccess01, deleter), nullptr, frame->context, id, nullptr, nullptr};
  Error* error = frame->api->state_get(&args);
  *state = args.state;
  return error;
}

}  // namespace t2j::ffi
