// prunerLoad, prunerPrepare, prunerForward, prunerSurvey, prunerRestructure, prunerPrune, prunerRecover, prunerMeasure,
// prunerTensor, prunerDispose, writeEmbeddings: pruning one decoder layer.
#include "binding/exports.h"
#include "binding/handle.h"
#include "binding/job.h"
#include "binding/moments.h"
#include "binding/spec_reader.h"
#include "prune/layer_pruner.h"

namespace espalier::binding {
namespace {

struct PrunerTag {
  static constexpr napi_type_tag kTypeTag = {0x1d7e4b0986c24fa3, 0xb2cc6f3174a85d90};
  static constexpr const char* kName = "layer pruner";
};
using PrunerHandle = Handle<LayerPruner, PrunerTag>;

std::string text(const Napi::Object& object, const char* key) { return object.Get(key).As<Napi::String>().Utf8Value(); }
double number(const Napi::Object& object, const char* key) { return object.Get(key).As<Napi::Number>().DoubleValue(); }
bool flag(const Napi::Object& object, const char* key) { return object.Get(key).ToBoolean().Value(); }

constexpr const char* kRoleNames[] = {"gate", "up", "down"};

Role read_role(const Napi::Value& value) {
  const std::string name = value.As<Napi::String>().Utf8Value();
  return name == kRoleNames[0] ? Role::kGate : name == kRoleNames[1] ? Role::kUp : Role::kDown;
}

// { score, comparison, update, values, sparsity, keep, group, meeting, permuteChannels, damping, shrinkage, block }
MethodPlan read_plan(const Napi::Object& object) {
  MethodPlan plan;
  const std::string score = text(object, "score");
  plan.score = score == "magnitude"    ? Score::kMagnitude
               : score == "activation" ? Score::kActivation
               : score == "relative"   ? Score::kRelative
                                       : Score::kSecondOrder;
  const std::string comparison = text(object, "comparison");
  plan.comparison = comparison == "matrix"  ? Comparison::kMatrix
                    : comparison == "row"   ? Comparison::kRow
                    : comparison == "given" ? Comparison::kGiven
                                            : Comparison::kBlock;
  const std::string update = text(object, "update");
  plan.update = update == "sparsegpt" ? Update::kSparseGpt : update == "alps" ? Update::kAlps : Update::kNone;
  const std::string values = text(object, "values");
  plan.values = values == "int8" ? Values::kInt8 : values == "int4" ? Values::kInt4 : Values::kF32;
  const auto group = static_cast<int64_t>(number(object, "group"));
  plan.budget = group > 0 ? Budget::n_of_m(static_cast<int64_t>(number(object, "keep")), group)
                          : Budget::unstructured(number(object, "sparsity"));
  plan.meeting = text(object, "meeting") == "experts" ? Meeting::kExperts : Meeting::kEach;
  plan.permute_channels = flag(object, "permuteChannels");
  plan.damping = number(object, "damping");
  plan.shrinkage = number(object, "shrinkage");
  plan.block = static_cast<int64_t>(number(object, "block"));
  return plan;
}

// prunerLoad(layer, files, { gpu?, threads, rope, hiddenSize, normEpsilon, allowNonfinite }) → job of a handle
Napi::Value load(const Napi::CallbackInfo& info) {
  const Files files = read_files(info[1].As<Napi::Array>());
  const auto options = info[2].As<Napi::Object>();
  std::optional<int> gpu;
  if (options.Get("gpu").IsNumber()) gpu = options.Get("gpu").As<Napi::Number>().Int32Value();
  auto pruner = std::make_shared<std::shared_ptr<LayerPruner>>();
  JobRequest job;
  job.work = [pruner, gpu, spec = read_layer(info[0].As<Napi::Object>(), files),
              rope = read_rope(options.Get("rope").As<Napi::Object>()),
              threads = static_cast<int>(number(options, "threads")),
              hidden = static_cast<int64_t>(number(options, "hiddenSize")),
              epsilon = static_cast<float>(number(options, "normEpsilon")),
              allow_nonfinite = flag(options, "allowNonfinite")](JobContext&) -> Status {
    auto loaded = LayerPruner::load(threads, spec, rope, hidden, epsilon, allow_nonfinite, gpu);
    if (!loaded.is_ok()) return loaded.status();
    *pruner = std::move(loaded.value());
    return Status::ok();
  };
  job.finish = [pruner](Napi::Env env) { return PrunerHandle::create(env, std::move(*pruner), 0); };
  return start_job(info.Env(), std::move(job));
}

// prunerPrepare(handle) → job
Napi::Value prepare(const Napi::CallbackInfo& info) {
  JobRequest job;
  job.work = [pruner = PrunerHandle::get(info[0])](JobContext&) { return pruner->prepare(); };
  job.finish = [](Napi::Env env) { return env.Undefined(); };
  return start_job(info.Env(), std::move(job));
}

// { gram, pooled, routerWeighted, together, scratch }
StatisticsRequest read_statistics(const Napi::Object& object) {
  return {.gram = flag(object, "gram"),
          .pooled = flag(object, "pooled"),
          .router_weighted = flag(object, "routerWeighted"),
          .together = static_cast<int64_t>(number(object, "together")),
          .scratch = text(object, "scratch")};
}

// { input, firstInput?, output?, firstOutput?, lengths }
ForwardRequest read_forward(const Napi::Object& object) {
  ForwardRequest request;
  request.input = text(object, "input");
  if (!object.Get("output").IsUndefined()) request.output = text(object, "output");
  const auto lengths = object.Get("lengths").As<Napi::Int32Array>();
  request.lengths.assign(lengths.Data(), lengths.Data() + lengths.ElementLength());
  if (!object.Get("firstInput").IsUndefined()) request.first_input = static_cast<int64_t>(number(object, "firstInput"));
  if (!object.Get("firstOutput").IsUndefined()) {
    request.first_output = static_cast<int64_t>(number(object, "firstOutput"));
  }
  return request;
}

// prunerForward(handle, { input, firstInput?, output?, firstOutput?, lengths, collect? }, onProgress?) → job
Napi::Value forward(const Napi::CallbackInfo& info) {
  const auto object = info[1].As<Napi::Object>();
  ForwardRequest request = read_forward(object);
  if (object.Get("collect").IsObject()) request.collect = read_statistics(object.Get("collect").As<Napi::Object>());
  JobRequest job;
  if (info[2].IsFunction()) job.on_progress = info[2].As<Napi::Function>();
  job.work = [pruner = PrunerHandle::get(info[0]), request](JobContext& context) {
    return pruner->forward(
        request, [&](int64_t done, int64_t total) { context.progress(done, total); }, context.cancel());
  };
  job.finish = [](Napi::Env env) { return env.Undefined(); };
  return start_job(info.Env(), std::move(job));
}

Napi::Object to_object(Napi::Env env, const MatrixId& id) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("part", id.part);
  object.Set("expert", id.expert);
  object.Set("role", kRoleNames[static_cast<size_t>(id.role)]);
  return object;
}

Napi::Value to_object(Napi::Env env, const ExpertMatrixReport& report) {
  Napi::Object object = to_object(env, report.id);
  object.Set("tokens", static_cast<double>(report.tokens));
  object.Set("fallback", report.matrix.fallback);
  object.Set("skipped", report.skipped);
  object.Set("starved", report.matrix.starved);
  object.Set("damping", report.matrix.damping);
  return object;
}

Napi::Float64Array to_array(Napi::Env env, const std::vector<double>& values) {
  Napi::Float64Array array = Napi::Float64Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

Napi::Object to_object(Napi::Env env, const PartSurvey& survey) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("tokens", static_cast<double>(survey.tokens));
  object.Set("topK", survey.top_k);
  object.Set("experts", static_cast<double>(survey.experts));
  object.Set("family", to_array(env, survey.family));
  object.Set("coactivation", to_array(env, survey.coactivation));
  object.Set("probabilities", to_array(env, survey.probabilities));
  object.Set("logitProducts", to_array(env, survey.logit_products));
  object.Set("meanOutputs", to_array(env, survey.mean_outputs));
  object.Set("losses", to_array(env, survey.losses));
  object.Set("gateRatios", to_array(env, survey.gate_ratios));
  return object;
}

Napi::Value to_object(Napi::Env env, const ExpertMatrixMoments& found) {
  Napi::Object object = to_object(env, found.id);
  set_moments(object, found.moments);
  return object;
}

Napi::Value to_object(Napi::Env env, const ExpertRecoverReport& report) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("part", report.part);
  object.Set("expert", report.expert);
  object.Set("tokens", static_cast<double>(report.tokens));
  object.Set("trained", report.trained);
  object.Set("before", report.report.before);
  object.Set("after", report.report.after);
  object.Set("epoch", report.report.epoch);
  return object;
}

// Makes `work` a job whose result is an array with an object for each thing that it found.
template <class T>
Napi::Value job_of_all(const Napi::CallbackInfo& info, const Napi::Value& on_progress,
                       std::function<Result<std::vector<T>>(JobContext&)> work) {
  auto found = std::make_shared<std::vector<T>>();
  JobRequest job;
  if (on_progress.IsFunction()) job.on_progress = on_progress.As<Napi::Function>();
  job.work = [work = std::move(work), found](JobContext& context) -> Status {
    Result<std::vector<T>> result = work(context);
    if (!result.is_ok()) return result.status();
    *found = std::move(result.value());
    return Status::ok();
  };
  job.finish = [found](Napi::Env env) -> Napi::Value {
    Napi::Array array = Napi::Array::New(env, found->size());
    for (size_t i = 0; i < found->size(); ++i) array.Set(static_cast<uint32_t>(i), to_object(env, (*found)[i]));
    return array;
  };
  return start_job(info.Env(), std::move(job));
}

// prunerSurvey(handle, { input, output?, lengths, logitProducts, meanOutputs, keep }, onProgress?) → job of surveys
Napi::Value survey(const Napi::CallbackInfo& info) {
  const auto object = info[1].As<Napi::Object>();
  const SurveyOptions options{.logit_products = flag(object, "logitProducts"),
                              .mean_outputs = flag(object, "meanOutputs"),
                              .keep = static_cast<int>(number(object, "keep"))};
  return job_of_all<PartSurvey>(
      info, info[2],
      [pruner = PrunerHandle::get(info[0]), request = read_forward(object), options](JobContext& context) {
        return pruner->survey(
            request, options, [&](int64_t done, int64_t total) { context.progress(done, total); }, context.cancel());
      });
}

// prunerRestructure(handle, part, { experts: [[{ expert, weight }]], expertOfRow, align, topK, router, correctionBias?
// }) → job
Napi::Value restructure(const Napi::CallbackInfo& info) {
  const auto object = info[2].As<Napi::Object>();
  RestructurePlan plan;
  const auto experts = object.Get("experts").As<Napi::Array>();
  for (uint32_t i = 0; i < experts.Length(); ++i) {
    std::vector<ExpertMember>& members = plan.experts.emplace_back();
    const auto list = experts.Get(i).As<Napi::Array>();
    for (uint32_t j = 0; j < list.Length(); ++j) {
      const auto member = list.Get(j).As<Napi::Object>();
      members.push_back({static_cast<int32_t>(number(member, "expert")), static_cast<float>(number(member, "weight"))});
    }
  }
  const auto map = object.Get("expertOfRow").As<Napi::Array>();
  for (uint32_t i = 0; i < map.Length(); ++i) plan.expert_of_row.push_back(map.Get(i).As<Napi::Number>().Int32Value());
  plan.align = flag(object, "align");
  plan.top_k = static_cast<int>(number(object, "topK"));
  const auto router = object.Get("router").As<Napi::Uint8Array>();
  plan.router.assign(router.Data(), router.Data() + router.ElementLength());
  if (!object.Get("correctionBias").IsUndefined()) {
    const auto bias = object.Get("correctionBias").As<Napi::Float32Array>();
    plan.correction_bias.assign(bias.Data(), bias.Data() + bias.ElementLength());
  }
  JobRequest job;
  job.work = [pruner = PrunerHandle::get(info[0]), part = info[1].As<Napi::Number>().Int32Value(),
              plan = std::move(plan)](JobContext& context) {
    return pruner->restructure(part, plan, context.cancel());
  };
  job.finish = [](Napi::Env env) { return env.Undefined(); };
  return start_job(info.Env(), std::move(job));
}

// prunerPrune(handle, plan, onProgress?) → job of reports
Napi::Value prune(const Napi::CallbackInfo& info) {
  return job_of_all<ExpertMatrixReport>(
      info, info[2],
      [pruner = PrunerHandle::get(info[0]), plan = read_plan(info[1].As<Napi::Object>())](JobContext& context) {
        return pruner->prune(
            plan, [&](int64_t done, int64_t total) { context.progress(done, total); }, context.cancel());
      });
}

// prunerRecover(handle, { input, lengths, dense, firstDense, scratch, epochs, batch, learningRate, gradual, seed,
// finalNorm?, head? }, files,
//   onProgress?) → job of reports
Napi::Value recover(const Napi::CallbackInfo& info) {
  const auto object = info[1].As<Napi::Object>();
  const Files files = read_files(info[2].As<Napi::Array>());
  RecoverLayerRequest request;
  request.input = text(object, "input");
  const auto lengths = object.Get("lengths").As<Napi::Int32Array>();
  request.lengths.assign(lengths.Data(), lengths.Data() + lengths.ElementLength());
  request.dense = text(object, "dense");
  request.first_dense = static_cast<int64_t>(number(object, "firstDense"));
  request.scratch = text(object, "scratch");
  request.options = {.epochs = static_cast<int>(number(object, "epochs")),
                     .batch = static_cast<int64_t>(number(object, "batch")),
                     .learning_rate = number(object, "learningRate"),
                     .gradual = flag(object, "gradual"),
                     .seed = static_cast<uint64_t>(number(object, "seed"))};
  if (!object.Get("head").IsUndefined()) {
    request.final_norm = read_weight(object.Get("finalNorm"), files);
    request.head = read_weight(object.Get("head"), files);
  }
  return job_of_all<ExpertRecoverReport>(
      info, info[3], [pruner = PrunerHandle::get(info[0]), request = std::move(request)](JobContext& context) {
        return pruner->recover(
            request, [&](int64_t done, int64_t total) { context.progress(done, total); }, context.cancel());
      });
}

// prunerOutliers(handle, multiple) → job of a share
Napi::Value outliers(const Napi::CallbackInfo& info) {
  auto share = std::make_shared<double>(0);
  JobRequest job;
  job.work = [pruner = PrunerHandle::get(info[0]), multiple = info[1].As<Napi::Number>().DoubleValue(),
              share](JobContext& context) -> Status {
    const Result<double> found = pruner->outlier_share(multiple, context.cancel());
    if (!found.is_ok()) return found.status();
    *share = found.value();
    return Status::ok();
  };
  job.finish = [share](Napi::Env env) -> Napi::Value { return Napi::Number::New(env, *share); };
  return start_job(info.Env(), std::move(job));
}

// prunerMeasure(handle) → job of moments
Napi::Value measure(const Napi::CallbackInfo& info) {
  return job_of_all<ExpertMatrixMoments>(
      info, info.Env().Undefined(),
      [pruner = PrunerHandle::get(info[0])](JobContext& context) { return pruner->measure(context.cancel()); });
}

// prunerTensor(handle, part, expert, role, begin, end) → Uint8Array
Napi::Value tensor(const Napi::CallbackInfo& info) {
  const auto pruner = PrunerHandle::get(info[0]);
  const auto found = pruner->tensor(
      {info[1].As<Napi::Number>().Int32Value(), info[2].As<Napi::Number>().Int32Value(), read_role(info[3])});
  if (!found.is_ok()) throw to_error(info.Env(), found.status());
  const std::span<const uint8_t> bytes = found.value();
  const int64_t begin = info[4].As<Napi::Number>().Int64Value();
  const int64_t end = info[5].As<Napi::Number>().Int64Value();
  if (begin < 0 || end < begin || end > static_cast<int64_t>(bytes.size())) {
    throw to_error(info.Env(), Status(Code::kUsage, "the matrix has no such bytes"));
  }
  Napi::Uint8Array array = Napi::Uint8Array::New(info.Env(), static_cast<size_t>(end - begin));
  std::copy(bytes.begin() + begin, bytes.begin() + end, array.Data());
  return array;
}

// writeEmbeddings(weight, files, tokens, path) → job
Napi::Value embed(const Napi::CallbackInfo& info) {
  const Files files = read_files(info[1].As<Napi::Array>());
  const auto ids = info[2].As<Napi::Int32Array>();
  JobRequest job;
  job.work = [weight = read_weight(info[0], files), path = info[3].As<Napi::String>().Utf8Value(),
              tokens = std::vector<int32_t>(ids.Data(), ids.Data() + ids.ElementLength())](JobContext&) {
    return write_embeddings(weight, tokens, path);
  };
  job.finish = [](Napi::Env env) { return env.Undefined(); };
  return start_job(info.Env(), std::move(job));
}

}  // namespace

void export_pruner(Napi::Env env, Napi::Object exports) {
  exports.Set("prunerLoad", Napi::Function::New(env, load));
  exports.Set("prunerPrepare", Napi::Function::New(env, prepare));
  exports.Set("prunerForward", Napi::Function::New(env, forward));
  exports.Set("prunerSurvey", Napi::Function::New(env, survey));
  exports.Set("prunerRestructure", Napi::Function::New(env, restructure));
  exports.Set("prunerPrune", Napi::Function::New(env, prune));
  exports.Set("prunerRecover", Napi::Function::New(env, recover));
  exports.Set("prunerOutliers", Napi::Function::New(env, outliers));
  exports.Set("prunerMeasure", Napi::Function::New(env, measure));
  exports.Set("prunerTensor", Napi::Function::New(env, tensor));
  exports.Set("prunerDispose",
              Napi::Function::New(env, [](const Napi::CallbackInfo& info) { PrunerHandle::dispose(info[0]); }));
  exports.Set("writeEmbeddings", Napi::Function::New(env, embed));
}

}  // namespace espalier::binding
