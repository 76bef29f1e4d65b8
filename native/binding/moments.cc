// weightMoments: what the distribution of a stored matrix looks like.
#include "binding/moments.h"

#include "binding/exports.h"
#include "binding/job.h"
#include "binding/spec_reader.h"

namespace espalier::binding {
namespace {

// weightMoments(weight, files, threads) → job of { zeros, size, kurtosis, kurtosisKept }
Napi::Value moments(const Napi::CallbackInfo& info) {
  auto found = std::make_shared<WeightMoments>();
  JobRequest job;
  job.work = [ref = read_weight(info[0], read_files(info[1].As<Napi::Array>())),
              threads = info[2].As<Napi::Number>().Int32Value(), found](JobContext&) -> Status {
    const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(threads);
    const Result<HostMatrix> host = HostMatrix::load(ref, pool.get());
    if (!host.is_ok()) return host.status();
    const std::vector<float> values = host.value().to_floats();
    *found = weight_moments(*pool, values.data(), static_cast<int64_t>(values.size()));
    return Status::ok();
  };
  job.finish = [found](Napi::Env env) -> Napi::Value {
    Napi::Object object = Napi::Object::New(env);
    set_moments(object, *found);
    return object;
  };
  return start_job(info.Env(), std::move(job));
}

}  // namespace

void set_moments(Napi::Object object, const WeightMoments& moments) {
  object.Set("zeros", static_cast<double>(moments.zeros));
  object.Set("size", static_cast<double>(moments.size));
  object.Set("kurtosis", moments.kurtosis);
  object.Set("kurtosisKept", moments.kurtosis_kept);
}

void export_moments(Napi::Env env, Napi::Object exports) {
  exports.Set("weightMoments", Napi::Function::New(env, moments));
}

}  // namespace espalier::binding
