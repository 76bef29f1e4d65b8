// features(): what this processor offers and what we use of it.
#include "binding/exports.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"

namespace espalier::binding {

void export_features(Napi::Env env, Napi::Object exports) {
  exports.Set("features", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
                const CpuFeatures& features = cpu_features();
                Napi::Object object = Napi::Object::New(info.Env());
                object.Set("model", features.model);
                object.Set("isa", isa_name(features.selected));
                object.Set("best", isa_name(features.best));
                object.Set("note", features.note);
                object.Set("threads", ThreadPool::shared(0)->size());
                Napi::Array flags = Napi::Array::New(info.Env());
                for (size_t i = 0; i < features.flags.size(); ++i)
                  flags.Set(static_cast<uint32_t>(i), features.flags[i]);
                object.Set("flags", flags);
                return object;
              }));
}

}  // namespace espalier::binding
