// Registers what the addon exports, and nothing else.
#include <napi.h>

#include "binding/exports.h"
#include "binding/job.h"

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  espalier::binding::install_job_runner(env);
  espalier::binding::export_error_codes(env, exports);
  espalier::binding::export_features(env, exports);
  espalier::binding::export_cuda(env, exports);
  espalier::binding::export_safetensors_file(env, exports);
  espalier::binding::export_engine(env, exports);
  espalier::binding::export_pruner(env, exports);
  espalier::binding::export_experts(env, exports);
  espalier::binding::export_matrix(env, exports);
  espalier::binding::export_moments(env, exports);
  espalier::binding::export_packing(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(espalier, init)
