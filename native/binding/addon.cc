// Registers what the addon exports, and nothing else.
#include <napi.h>

#include "binding/exports.h"

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  espalier::binding::export_error_codes(env, exports);
  espalier::binding::export_safetensors_file(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(espalier, init)
