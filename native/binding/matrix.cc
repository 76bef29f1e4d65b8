// matrixPack, matrixRandom, matrixMultiply, matrixUnpack, matrixInfo, matrixDispose, formatSupport, readCeiling, route,
// scoreWeights, selectMask: the parts of the engine and the pruner one by one, for measurements and pipelines. They run
// on the calling thread and the pool.
#include <optional>

#include "binding/exports.h"
#include "binding/handle.h"
#include "binding/spec_reader.h"
#include "core/read_ceiling.h"
#include "engine/linear.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/tile_peak.h"
#include "moe/router.h"
#include "prune/mask.h"
#include "prune/score.h"
#include "sparse/random_matrix.h"

namespace espalier::binding {
namespace {

struct MatrixTag {
  static constexpr napi_type_tag kTypeTag = {0x52c04e7ad1f84b66, 0x8f3e21b907d5ac41};
  static constexpr const char* kName = "sparse matrix";
};
// A matrix and the threads that multiply by it, which stay between products.
struct Matrix {
  Linear linear;
  std::shared_ptr<ThreadPool> pool;
};
using MatrixHandle = Handle<Matrix, MatrixTag>;

int64_t integer(const Napi::Value& value) { return value.As<Napi::Number>().Int64Value(); }

Napi::Error usage(Napi::Env env, const std::string& message) { return to_error(env, Status(Code::kUsage, message)); }

Napi::Float32Array floats(const Napi::Value& value, int64_t size, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array ||
      static_cast<int64_t>(value.As<Napi::TypedArray>().ElementLength()) != size) {
    throw usage(value.Env(), std::string(name) + " must be a Float32Array of " + std::to_string(size) + " values");
  }
  return value.As<Napi::Float32Array>();
}

std::shared_ptr<ThreadPool> read_pool(const Napi::Value& threads) {
  return ThreadPool::shared(static_cast<int>(integer(threads)));
}

void check_taken(Napi::Env env, const Format& format) {
  if (!cpu_kernels().takes(format)) throw usage(env, "this machine has no product for the format " + format.name());
}

void check_size(Napi::Env env, int64_t rows, int64_t cols) {
  if (rows < 1 || cols < 1 || cols % 2 != 0) throw usage(env, "a matrix needs rows and an even number of columns");
}

Napi::Value wrap(Napi::Env env, Result<PackedMatrix> packed, std::shared_ptr<ThreadPool> pool) {
  if (!packed.is_ok()) throw to_error(env, packed.status());
  auto matrix = std::make_shared<Matrix>();
  matrix->linear.weights = std::move(packed.value());
  matrix->pool = std::move(pool);
  const int64_t bytes = matrix->linear.weights.bytes();
  return MatrixHandle::create(env, std::move(matrix), bytes);
}

// matrixPack(values, rows, cols, format, threads)
Napi::Value pack(const Napi::CallbackInfo& info) {
  const int64_t rows = integer(info[1]);
  const int64_t cols = integer(info[2]);
  check_size(info.Env(), rows, cols);
  const Napi::Float32Array data = floats(info[0], rows * cols, "values");
  std::shared_ptr<ThreadPool> pool = read_pool(info[4]);
  const MatrixSource source(DType::kF32, rows, cols, data.Data());
  std::optional<ZeroSurvey> survey;
  Format format = read_format(info[3]);
  if (info[3].As<Napi::Object>().Get("storage").As<Napi::String>().Utf8Value() == "auto") {
    survey.emplace(*pool, format.values, source);
    const Format chosen = survey->choose();
    if (cpu_kernels().takes(chosen)) format = chosen;
  }
  check_taken(info.Env(), format);
  Result<PackedMatrix> packed = PackedMatrix::pack(*pool, format, source, survey ? &*survey : nullptr);
  return wrap(info.Env(), std::move(packed), std::move(pool));
}

// matrixRandom(rows, cols, format, sparsity, seed, threads)
Napi::Value make_random(const Napi::CallbackInfo& info) {
  const int64_t rows = integer(info[0]);
  const int64_t cols = integer(info[1]);
  check_size(info.Env(), rows, cols);
  const Format format = read_format(info[2]);
  check_taken(info.Env(), format);
  std::shared_ptr<ThreadPool> pool = read_pool(info[5]);
  Result<PackedMatrix> packed =
      random_matrix(*pool, format, rows, cols, info[3].As<Napi::Number>().DoubleValue(), info[4].As<Napi::Number>());
  return wrap(info.Env(), std::move(packed), std::move(pool));
}

// matrixMultiply(handle, x [tokens][cols], tokens, out [tokens][rows], activations)
void multiply_matrix(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Matrix> matrix = MatrixHandle::get(info[0]);
  const int64_t tokens = integer(info[2]);
  const int64_t rows = matrix->linear.weights.rows();
  const int64_t cols = matrix->linear.weights.cols();
  const Napi::Float32Array x = floats(info[1], tokens * cols, "x");
  Napi::Float32Array out = floats(info[3], tokens * rows, "out");
  const Product product{&matrix->linear, x.Data(), cols, tokens, out.Data(), rows};
  multiply({*matrix->pool, cpu_kernels(), read_activations(info[4])}, std::span(&product, 1));
}

Napi::Value unpack(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Matrix> matrix = MatrixHandle::get(info[0]);
  const PackedMatrix& weights = matrix->linear.weights;
  auto out = Napi::Float32Array::New(info.Env(), static_cast<size_t>(weights.rows() * weights.cols()));
  weights.unpack(*matrix->pool, out.Data());
  return out;
}

Napi::Value describe(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Matrix> matrix = MatrixHandle::get(info[0]);
  const PackedMatrix& weights = matrix->linear.weights;
  check(info.Env(), weights.validate());
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("rows", static_cast<double>(weights.rows()));
  object.Set("cols", static_cast<double>(weights.cols()));
  object.Set("bytes", static_cast<double>(weights.bytes()));
  object.Set("format", weights.format().name());
  return object;
}

// formatSupport(format, cols) → 'taken', 'expanded' (there is no product for it here) or 'impossible'
Napi::Value support(const Napi::CallbackInfo& info) {
  const Format format = read_format(info[0]);
  const char* answer = !format_exists(format, integer(info[1])) ? "impossible"
                       : cpu_kernels().takes(format)            ? "taken"
                                                                : "expanded";
  return Napi::String::New(info.Env(), answer);
}

// tilePeak(threads) → bf16 operations a second
Napi::Value measure_peak(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), tile_peak(*read_pool(info[0])));
}

// readCeiling(bytes, threads, plain) → bytes a second
Napi::Value measure_ceiling(const Napi::CallbackInfo& info) {
  const Result<double> rate = read_ceiling(*read_pool(info[1]), integer(info[0]),
                                           info[2].As<Napi::Boolean>() ? Reading::kPlain : Reading::kPrefetched);
  if (!rate.is_ok()) throw to_error(info.Env(), rate.status());
  return Napi::Number::New(info.Env(), rate.value());
}

// route(logits [tokens][rows], tokens, rows, options) → { experts, gates }, both [tokens][topK]
Napi::Value route_tokens(const Napi::CallbackInfo& info) {
  const int64_t tokens = integer(info[1]);
  const int64_t rows = integer(info[2]);
  const auto wish = info[3].As<Napi::Object>();
  RouterOptions options = read_routing(wish);
  if (const Napi::Value bias = wish.Get("correctionBias"); !bias.IsUndefined()) {
    const Napi::Float32Array values = floats(bias, rows, "correctionBias");
    options.correction_bias.assign(values.Data(), values.Data() + rows);
  }
  check(info.Env(), check_router(options, rows));
  const Napi::Float32Array logits = floats(info[0], tokens * rows, "logits");
  std::vector<float> scratch(logits.Data(), logits.Data() + logits.ElementLength());
  const auto size = static_cast<size_t>(tokens * options.top_k);
  auto experts = Napi::Int32Array::New(info.Env(), size);
  auto gates = Napi::Float32Array::New(info.Env(), size);
  route(cpu_kernels(), options, scratch.data(), tokens, rows, experts.Data(), gates.Data());
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("experts", experts);
  result.Set("gates", gates);
  return result;
}

// scoreWeights(weights, rows, cols, norms?) → scores
Napi::Value score(const Napi::CallbackInfo& info) {
  const int64_t rows = integer(info[1]);
  const int64_t cols = integer(info[2]);
  const Napi::Float32Array weights = floats(info[0], rows * cols, "weights");
  auto scores = Napi::Float32Array::New(info.Env(), static_cast<size_t>(rows * cols));
  const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(0);
  if (info[3].IsUndefined()) {
    score_magnitude(*pool, weights.Data(), rows, cols, scores.Data());
  } else {
    const Napi::Float32Array norms = floats(info[3], cols, "norms");
    score_activation(*pool, weights.Data(), rows, cols, norms.Data(), scores.Data());
  }
  return scores;
}

// selectMask(scores, rows, cols, comparison, { sparsity, keep, group }) → Uint8Array, 1: kept
Napi::Value select(const Napi::CallbackInfo& info) {
  const int64_t rows = integer(info[1]);
  const int64_t cols = integer(info[2]);
  const Napi::Float32Array scores = floats(info[0], rows * cols, "scores");
  const auto object = info[4].As<Napi::Object>();
  const int64_t group = integer(object.Get("group"));
  const Budget budget = group > 0 ? Budget::n_of_m(integer(object.Get("keep")), group)
                                  : Budget::unstructured(object.Get("sparsity").As<Napi::Number>().DoubleValue());
  check(info.Env(), check_budget(budget, cols));
  auto mask = Napi::Uint8Array::New(info.Env(), static_cast<size_t>(rows * cols));
  const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(0);
  if (budget.is_grouped()) {
    mask_groups(*pool, scores.Data(), rows, cols, budget.keep, budget.group, mask.Data());
  } else if (info[3].As<Napi::String>().Utf8Value() == "row") {
    mask_rows(*pool, scores.Data(), rows, cols, budget.sparsity, mask.Data());
  } else {
    mask_threshold(*pool, scores.Data(), rows, cols, cols, budget.sparsity, mask.Data());
  }
  return mask;
}

}  // namespace

void export_matrix(Napi::Env env, Napi::Object exports) {
  exports.Set("matrixPack", Napi::Function::New(env, pack));
  exports.Set("matrixRandom", Napi::Function::New(env, make_random));
  exports.Set("matrixMultiply", Napi::Function::New(env, multiply_matrix));
  exports.Set("matrixUnpack", Napi::Function::New(env, unpack));
  exports.Set("matrixInfo", Napi::Function::New(env, describe));
  exports.Set("matrixDispose",
              Napi::Function::New(env, [](const Napi::CallbackInfo& info) { MatrixHandle::dispose(info[0]); }));
  exports.Set("formatSupport", Napi::Function::New(env, support));
  exports.Set("readCeiling", Napi::Function::New(env, measure_ceiling));
  exports.Set("tilePeak", Napi::Function::New(env, measure_peak));
  exports.Set("route", Napi::Function::New(env, route_tokens));
  exports.Set("scoreWeights", Napi::Function::New(env, score));
  exports.Set("selectMask", Napi::Function::New(env, select));
}

}  // namespace espalier::binding
