// features(): what this processor offers and what we use of it.
#include "binding/exports.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/kernels.h"

namespace espalier::binding {
namespace {

Napi::Array to_array(Napi::Env env, const std::vector<std::string>& strings) {
  Napi::Array array = Napi::Array::New(env, strings.size());
  for (size_t i = 0; i < strings.size(); ++i) array.Set(static_cast<uint32_t>(i), strings[i]);
  return array;
}

// The sparse formats that the selected kernels have no product for.
std::vector<std::string> expanded_formats() {
  std::vector<std::string> names;
  for (const Values values : {Values::kBf16, Values::kInt8, Values::kInt4}) {
    for (const Format& format : {Format{Storage::kBitmap, values}, Format{Storage::kNm, values, 2, 4}}) {
      if (!cpu_kernels().takes(format)) names.push_back(format.name());
    }
  }
  return names;
}

}  // namespace

void export_features(Napi::Env env, Napi::Object exports) {
  exports.Set("features", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
                const CpuFeatures& features = cpu_features();
                Napi::Object object = Napi::Object::New(info.Env());
                object.Set("model", features.model);
                object.Set("isa", isa_name(features.selected));
                object.Set("best", isa_name(features.best));
                object.Set("note", features.note);
                object.Set("threads", ThreadPool::shared(0)->size());
                object.Set("flags", to_array(info.Env(), features.flags));
                object.Set("expanded", to_array(info.Env(), expanded_formats()));
                return object;
              }));
}

}  // namespace espalier::binding
