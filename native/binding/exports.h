// One function a file of binding/: each defines its class or functions on `exports`.
#pragma once

#include <napi.h>

namespace espalier::binding {

void export_cuda(Napi::Env env, Napi::Object exports);
void export_error_codes(Napi::Env env, Napi::Object exports);
void export_features(Napi::Env env, Napi::Object exports);
void export_engine(Napi::Env env, Napi::Object exports);
void export_pruner(Napi::Env env, Napi::Object exports);
void export_experts(Napi::Env env, Napi::Object exports);
void export_matrix(Napi::Env env, Napi::Object exports);
void export_moments(Napi::Env env, Napi::Object exports);
void export_packing(Napi::Env env, Napi::Object exports);
void export_safetensors_file(Napi::Env env, Napi::Object exports);

}  // namespace espalier::binding
