// expertDistances, averageRows: what choosing among experts needs of their weights, and their router without some.
#include "binding/errors.h"
#include "binding/exports.h"
#include "binding/job.h"
#include "binding/spec_reader.h"
#include "prune/expert_distances.h"
#include "prune/router_rows.h"

namespace espalier::binding {
namespace {

// expertDistances([{ gate, up, down }], files, clusters: number[][], threads) → job of number[][]
Napi::Value distances(const Napi::CallbackInfo& info) {
  const Files files = read_files(info[1].As<Napi::Array>());
  std::vector<MlpSpec> experts;
  const auto mlps = info[0].As<Napi::Array>();
  for (uint32_t i = 0; i < mlps.Length(); ++i) {
    const auto mlp = mlps.Get(i).As<Napi::Object>();
    experts.push_back(
        {read_weight(mlp.Get("gate"), files), read_weight(mlp.Get("up"), files), read_weight(mlp.Get("down"), files)});
  }
  std::vector<std::vector<int32_t>> clusters;
  const auto lists = info[2].As<Napi::Array>();
  for (uint32_t i = 0; i < lists.Length(); ++i) {
    std::vector<int32_t>& cluster = clusters.emplace_back();
    const auto list = lists.Get(i).As<Napi::Array>();
    for (uint32_t j = 0; j < list.Length(); ++j) {
      const int32_t expert = list.Get(j).As<Napi::Number>().Int32Value();
      if (expert < 0 || expert >= static_cast<int32_t>(experts.size())) {
        throw to_error(info.Env(), Status(Code::kUsage, "a cluster names no expert"));
      }
      cluster.push_back(expert);
    }
  }
  auto found = std::make_shared<std::vector<std::vector<double>>>();
  JobRequest job;
  job.work = [experts = std::move(experts), clusters = std::move(clusters), found,
              threads = info[3].As<Napi::Number>().Int32Value()](JobContext& context) -> Status {
    auto result = distances_to_means(*ThreadPool::shared(threads), experts, clusters, context.cancel());
    if (!result.is_ok()) return result.status();
    *found = std::move(result.value());
    return Status::ok();
  };
  job.finish = [found](Napi::Env env) -> Napi::Value {
    Napi::Array all = Napi::Array::New(env, found->size());
    for (size_t c = 0; c < found->size(); ++c) {
      Napi::Array own = Napi::Array::New(env, (*found)[c].size());
      for (size_t m = 0; m < (*found)[c].size(); ++m) own.Set(static_cast<uint32_t>(m), (*found)[c][m]);
      all.Set(static_cast<uint32_t>(c), own);
    }
    return all;
  };
  return start_job(info.Env(), std::move(job));
}

// averageRows(matrix: Uint8Array, dtype, cols, rows: number[][]) → { bytes, values }: rows of a matrix, or their means
Napi::Value average(const Napi::CallbackInfo& info) {
  const auto matrix = info[0].As<Napi::Uint8Array>();
  const std::optional<DType> dtype = dtype_from_name(info[1].As<Napi::String>().Utf8Value());
  if (!dtype || !is_compute_dtype(*dtype)) {
    throw to_error(info.Env(), Status(Code::kMismatch, "a weight must be BF16, F16 or F32"));
  }
  const int64_t cols = info[2].As<Napi::Number>().Int64Value();
  const int64_t row_bytes = cols * (dtype_bits(*dtype) / 8);
  const int64_t height = row_bytes > 0 ? static_cast<int64_t>(matrix.ElementLength()) / row_bytes : 0;
  const auto lists = info[3].As<Napi::Array>();
  std::vector<std::vector<int32_t>> rows;
  for (uint32_t i = 0; i < lists.Length(); ++i) {
    std::vector<int32_t>& own = rows.emplace_back();
    const auto list = lists.Get(i).As<Napi::Array>();
    for (uint32_t j = 0; j < list.Length(); ++j) {
      own.push_back(list.Get(j).As<Napi::Number>().Int32Value());
      if (own.back() < 0 || own.back() >= height) {
        throw to_error(info.Env(), Status(Code::kUsage, "the matrix has no such row"));
      }
    }
  }
  const std::vector<uint8_t> averaged = average_rows(*dtype, matrix.Data(), cols, rows);
  auto bytes = Napi::Uint8Array::New(info.Env(), averaged.size());
  std::copy(averaged.begin(), averaged.end(), bytes.Data());
  auto values = Napi::Float32Array::New(info.Env(), rows.size() * static_cast<size_t>(cols));
  load_floats(*dtype, averaged.data(), 0, static_cast<int64_t>(values.ElementLength()), values.Data());
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("bytes", bytes);
  result.Set("values", values);
  return result;
}

}  // namespace

void export_experts(Napi::Env env, Napi::Object exports) {
  exports.Set("expertDistances", Napi::Function::New(env, distances));
  exports.Set("averageRows", Napi::Function::New(env, average));
}

}  // namespace espalier::binding
