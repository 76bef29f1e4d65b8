// cudaDevices, cudaReadCeiling, cudaMeasureProducts: the GPUs that the kernels run on, or why there are none, and how
// fast they are.
#include "binding/errors.h"
#include "binding/exports.h"
#include "binding/job.h"
#include "binding/spec_reader.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/measure.h"

namespace espalier::binding {
namespace {

Napi::Value list_devices(const Napi::CallbackInfo& info) {
  const cuda::DeviceSurvey survey = cuda::survey_devices();
  Napi::Array devices = Napi::Array::New(info.Env(), survey.devices.size());
  for (size_t i = 0; i < survey.devices.size(); ++i) {
    const cuda::Device& device = survey.devices[i];
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("number", device.number);
    object.Set("name", device.name);
    object.Set("capability", std::to_string(device.major) + "." + std::to_string(device.minor));
    object.Set("memory", static_cast<double>(device.memory));
    devices.Set(static_cast<uint32_t>(i), object);
  }
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("compiled", survey.compiled);
  object.Set("devices", devices);
  object.Set("reason", survey.reason);
  object.Set("hasCublasLt", survey.has_cublaslt);
  object.Set("cublasLt", survey.cublaslt);
  return object;
}

// cudaReadCeiling(gpu, bytes) → job of bytes a second
Napi::Value measure_ceiling(const Napi::CallbackInfo& info) {
  auto rate = std::make_shared<double>(0);
  JobRequest job;
  job.work = [rate, gpu = info[0].As<Napi::Number>().Int32Value(),
              bytes = info[1].As<Napi::Number>().Int64Value()](JobContext&) -> Status {
    const Result<double> measured = cuda::read_ceiling(gpu, bytes);
    if (measured.is_ok()) *rate = measured.value();
    return measured.status();
  };
  job.finish = [rate](Napi::Env env) -> Napi::Value { return Napi::Number::New(env, *rate); };
  return start_job(info.Env(), std::move(job));
}

// cudaMeasureProducts(gpu, { format, rows, cols, sparsity, seed, matrices, batches, activations, threads })
// → job of { bytes, ceiling, seconds, samples }
Napi::Value measure_products(const Napi::CallbackInfo& info) {
  const auto object = info[1].As<Napi::Object>();
  const auto number = [&](const char* key) { return object.Get(key).As<Napi::Number>(); };
  cuda::ProductMeasure measure;
  measure.format = read_format(object.Get("format"));
  measure.rows = number("rows").Int64Value();
  measure.cols = number("cols").Int64Value();
  measure.sparsity = number("sparsity").DoubleValue();
  measure.seed = number("seed").Uint32Value();
  measure.count = number("matrices").Int32Value();
  const auto batches = object.Get("batches").As<Napi::Int32Array>();
  measure.batches.assign(batches.Data(), batches.Data() + batches.ElementLength());
  measure.parts = read_activations(object.Get("activations")) == Activations::kBf16 ? 1 : 2;
  auto times = std::make_shared<cuda::ProductTimes>();
  JobRequest job;
  job.work = [times, measure, gpu = info[0].As<Napi::Number>().Int32Value(),
              threads = number("threads").Int32Value()](JobContext&) -> Status {
    Result<cuda::ProductTimes> measured = cuda::measure_products(*ThreadPool::shared(threads), gpu, measure);
    if (measured.is_ok()) *times = std::move(measured.value());
    return measured.status();
  };
  job.finish = [times](Napi::Env env) -> Napi::Value {
    auto seconds = Napi::Float64Array::New(env, times->times.size());
    auto samples = Napi::Int32Array::New(env, times->times.size());
    for (size_t i = 0; i < times->times.size(); ++i) {
      seconds[i] = times->times[i].seconds;
      samples[i] = times->times[i].samples;
    }
    Napi::Object result = Napi::Object::New(env);
    result.Set("bytes", static_cast<double>(times->bytes));
    result.Set("ceiling", times->ceiling);
    result.Set("seconds", seconds);
    result.Set("samples", samples);
    return result;
  };
  return start_job(info.Env(), std::move(job));
}

}  // namespace

void export_cuda(Napi::Env env, Napi::Object exports) {
  exports.Set("cudaDevices", Napi::Function::New(env, list_devices));
  exports.Set("cudaReadCeiling", Napi::Function::New(env, measure_ceiling));
  exports.Set("cudaMeasureProducts", Napi::Function::New(env, measure_products));
}

}  // namespace espalier::binding
