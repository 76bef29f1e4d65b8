// engineLoad, engineStep, engineInfo, engineDispose: a model ready to run.
#include "engine/engine.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "binding/exports.h"
#include "binding/handle.h"
#include "binding/job.h"
#include "binding/spec_reader.h"

namespace espalier::binding {
namespace {

struct EngineTag {
  static constexpr napi_type_tag kTypeTag = {0x6b1f0c5ad2f34e11, 0x9c0b7a55e38d4f20};
  static constexpr const char* kName = "engine";
};
using EngineHandle = Handle<Engine, EngineTag>;

// glibc keeps freed blocks of up to 32 MB for the next allocation, in an arena a thread; a model's weights go back to
// the system.
struct FreeEngine {
  void operator()(Engine* engine) const {
    delete engine;
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
  }
};

template <class T>
std::vector<int32_t> read_ids(const T& object, const char* key) {
  const Napi::Value value = object.Get(key);
  if (value.IsUndefined()) return {};
  const auto array = value.template As<Napi::Int32Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

LogitRules read_rules(const Napi::Object& object) {
  const auto number = [&](const char* key) { return object.Get(key).As<Napi::Number>(); };
  LogitRules rules;
  rules.repetition_penalty = number("repetitionPenalty").FloatValue();
  rules.presence_penalty = number("presencePenalty").FloatValue();
  rules.frequency_penalty = number("frequencyPenalty").FloatValue();
  rules.mask = read_ids(object, "mask");
  rules.history = read_ids(object, "history");
  rules.answer_begin = number("answerBegin").Int64Value();
  const std::vector<int32_t> ids = read_ids(object, "biasIds");
  const auto values = object.Get("biasValues").As<Napi::Float32Array>();
  if (values.ElementLength() != ids.size())
    throw to_error(object.Env(), Status(Code::kUsage, "each bias needs a token and a value"));
  for (size_t i = 0; i < ids.size(); ++i) rules.bias.push_back({ids[i], values[i]});
  return rules;
}

SampleRequest read_sample(const Napi::Object& object) {
  const auto number = [&](const char* key) { return object.Get(key).As<Napi::Number>(); };
  SampleRequest sample;
  sample.row = number("row").Int32Value();
  sample.options.temperature = number("temperature").FloatValue();
  sample.options.top_k = number("topK").Int32Value();
  sample.options.top_p = number("topP").FloatValue();
  sample.options.min_p = number("minP").FloatValue();
  bool lossless = false;
  sample.options.seed = object.Get("seed").As<Napi::BigInt>().Uint64Value(&lossless);
  sample.step = static_cast<uint64_t>(number("step").Int64Value());
  const Napi::Value top = object.Get("top");
  if (!top.IsUndefined()) sample.top = top.As<Napi::Number>().Int32Value();
  const Napi::Value rules = object.Get("rules");
  if (!rules.IsUndefined()) sample.rules = read_rules(rules.As<Napi::Object>());
  return sample;
}

StepRequest read_step(const Napi::Object& object) {
  StepRequest request;
  request.tokens = read_ids(object, "tokens");
  const auto slices = object.Get("slices").As<Napi::Array>();
  for (uint32_t i = 0; i < slices.Length(); ++i) {
    const auto item = slices.Get(i).As<Napi::Object>();
    Slice slice;
    slice.first_row = request.batch.rows;
    slice.count = item.Get("count").As<Napi::Number>().Int64Value();
    slice.position = item.Get("position").As<Napi::Number>().Int64Value();
    slice.blocks = read_ids(item, "blocks");
    request.batch.rows += slice.count;
    request.batch.slices.push_back(std::move(slice));
  }
  request.logits = read_ids(object, "logits");
  const Napi::Value samples = object.Get("samples");
  if (!samples.IsUndefined()) {
    const auto list = samples.As<Napi::Array>();
    for (uint32_t i = 0; i < list.Length(); ++i) request.samples.push_back(read_sample(list.Get(i).As<Napi::Object>()));
  }
  const std::vector<int32_t> rows = read_ids(object, "scoreRows");
  const std::vector<int32_t> targets = read_ids(object, "scoreTargets");
  if (rows.size() != targets.size())
    throw to_error(object.Env(), Status(Code::kUsage, "each score needs a row and a target"));
  const Napi::Value tops = object.Get("scoreTop");
  const int32_t top = tops.IsUndefined() ? 0 : tops.As<Napi::Number>().Int32Value();
  for (size_t i = 0; i < rows.size(); ++i) request.scores.push_back({rows[i], targets[i], top});
  return request;
}

template <class Array, class T>
Array to_typed_array(Napi::Env env, const std::vector<T>& values) {
  Array array = Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

KvType read_kv_type(const Napi::Value& value) {
  const std::string name = value.As<Napi::String>().Utf8Value();
  return name == "bf16" ? KvType::kBf16 : name == "int8" ? KvType::kInt8 : KvType::kF32;
}

// engineLoad(spec, files, { gpus, threads, sparse, mapped, experts, rest, kvBlocks, kvCache, activations },
// onProgress?) → job of a handle
Napi::Value load(const Napi::CallbackInfo& info) {
  const Files files = read_files(info[1].As<Napi::Array>());
  const auto object = info[2].As<Napi::Object>();
  EngineOptions options;
  if (object.Get("gpus").IsTypedArray()) options.gpus = read_ids(object, "gpus");
  options.threads = object.Get("threads").As<Napi::Number>().Int32Value();
  options.kv_type = read_kv_type(object.Get("kvCache"));
  options.activations = read_activations(object.Get("activations"));
  options.kv_blocks = object.Get("kvBlocks").As<Napi::Number>().Int64Value();
  const bool sparse = object.Get("sparse").ToBoolean().Value();
  const bool mapped = object.Get("mapped").ToBoolean().Value();
  options.experts = {read_precision(object.Get("experts")), sparse, mapped};
  options.rest = {read_precision(object.Get("rest")), sparse, mapped};
  auto engine = std::make_shared<std::shared_ptr<Engine>>();
  JobRequest job;
  if (info[3].IsFunction()) job.on_progress = info[3].As<Napi::Function>();
  job.work = [spec = read_model(info[0].As<Napi::Object>(), files), options, engine](JobContext& context) -> Status {
    Result<std::unique_ptr<Engine>> loaded = Engine::load(
        spec, options, [&](int64_t done, int64_t total) { context.progress(done, total); }, context.cancel());
    if (!loaded.is_ok()) return loaded.status();
    engine->reset(loaded.value().release(), FreeEngine());
    return Status::ok();
  };
  job.finish = [engine](Napi::Env env) {
    const int64_t bytes = (*engine)->info().weight_bytes;
    return EngineHandle::create(env, std::move(*engine), bytes);
  };
  return start_job(info.Env(), std::move(job));
}

// engineStep(handle, request) → job of { logits, samples, sampleScores, scores, topIds, topScores }
Napi::Value step(const Napi::CallbackInfo& info) {
  auto result = std::make_shared<StepResult>();
  JobRequest job;
  job.work = [engine = EngineHandle::get(info[0]), request = read_step(info[1].As<Napi::Object>()),
              result](JobContext& context) -> Status {
    Result<StepResult> done = engine->step(request, context.cancel());
    if (!done.is_ok()) return done.status();
    *result = std::move(done.value());
    return Status::ok();
  };
  job.finish = [result](Napi::Env env) -> Napi::Value {
    Napi::Object object = Napi::Object::New(env);
    object.Set("logits", to_typed_array<Napi::Float32Array>(env, result->logits));
    object.Set("samples", to_typed_array<Napi::Int32Array>(env, result->samples));
    object.Set("sampleScores", to_typed_array<Napi::Float64Array>(env, result->sample_scores));
    object.Set("scores", to_typed_array<Napi::Float64Array>(env, result->scores));
    object.Set("topIds", to_typed_array<Napi::Int32Array>(env, result->top_ids));
    object.Set("topScores", to_typed_array<Napi::Float64Array>(env, result->top_scores));
    return object;
  };
  return start_job(info.Env(), std::move(job));
}

Napi::Value describe(const Napi::CallbackInfo& info) {
  const EngineInfo& engine = EngineHandle::get(info[0])->info();
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("weightBytes", static_cast<double>(engine.weight_bytes));
  object.Set("expertBytes", static_cast<double>(engine.expert_bytes));
  object.Set("kvBytes", static_cast<double>(engine.kv_bytes));
  object.Set("activeBytes", static_cast<double>(engine.active_bytes));
  Napi::Array formats = Napi::Array::New(info.Env());
  for (size_t i = 0; i < engine.formats.size(); ++i) formats.Set(static_cast<uint32_t>(i), engine.formats[i]);
  object.Set("formats", formats);
  Napi::Array gpus = Napi::Array::New(info.Env());
  for (size_t i = 0; i < engine.gpus.size(); ++i) {
    Napi::Object share = Napi::Object::New(info.Env());
    share.Set("gpu", engine.gpus[i].gpu);
    share.Set("layers", engine.gpus[i].layers);
    share.Set("weightBytes", static_cast<double>(engine.gpus[i].weight_bytes));
    gpus.Set(static_cast<uint32_t>(i), share);
  }
  object.Set("gpus", gpus);
  return object;
}

}  // namespace

void export_engine(Napi::Env env, Napi::Object exports) {
  exports.Set("engineLoad", Napi::Function::New(env, load));
  exports.Set("engineStep", Napi::Function::New(env, step));
  exports.Set("engineInfo", Napi::Function::New(env, describe));
  exports.Set("engineDispose",
              Napi::Function::New(env, [](const Napi::CallbackInfo& info) { EngineHandle::dispose(info[0]); }));
}

}  // namespace espalier::binding
