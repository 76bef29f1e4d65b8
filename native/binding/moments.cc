// weightMoments: what the distribution of a stored matrix looks like.
#include "binding/moments.h"

#include "binding/exports.h"
#include "binding/job.h"
#include "binding/spec_reader.h"
#include "engine/packed_weight.h"

namespace espalier::binding {
namespace {

// Of a packed matrix, what its elements stand for.
Result<std::vector<float>> values_of(ThreadPool& pool, const WeightRef& ref) {
  if (!ref.is_packed()) {
    const Result<HostMatrix> host = HostMatrix::load(ref, &pool);
    if (!host.is_ok()) return host.status();
    return host.value().to_floats();
  }
  const Result<PackedMatrix> matrix = load_packed(pool, {}, ref);
  if (!matrix.is_ok()) return matrix.status();
  std::vector<float> values(static_cast<size_t>(ref.rows * ref.cols));
  matrix.value().unpack(pool, values.data());
  return values;
}

// weightMoments(weight, files, threads) → job of { zeros, size, kurtosis, kurtosisKept }
Napi::Value moments(const Napi::CallbackInfo& info) {
  auto found = std::make_shared<WeightMoments>();
  JobRequest job;
  job.work = [ref = read_weight(info[0], read_files(info[1].As<Napi::Array>())),
              threads = info[2].As<Napi::Number>().Int32Value(), found](JobContext&) -> Status {
    const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(threads);
    const Result<std::vector<float>> values = values_of(*pool, ref);
    if (!values.is_ok()) return values.status();
    *found = weight_moments(*pool, values.value().data(), static_cast<int64_t>(values.value().size()));
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
