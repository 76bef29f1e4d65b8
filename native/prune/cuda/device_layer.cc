#include "prune/cuda/device_layer.h"

#include <algorithm>

#include "engine/cuda/upload_vector.h"
#include "kernels/cuda/activations.h"

namespace espalier::cuda {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));

int parts_of(bool is_bf16) { return is_bf16 ? 1 : 2; }

bool is_bf16(const Linear& linear) { return linear.weights.format().values == Values::kBf16; }

}  // namespace

Result<float*> LayerUploader::host(int64_t floats) {
  // What was copied from it before has arrived.
  ESPALIER_CUDA_TRY(cudaStreamSynchronize(stream_));
  ESPALIER_TRY(host_.ensure(floats * kFloatBytes));
  return host_.as<float>();
}

Status LayerUploader::upload(int64_t rows, int64_t cols, DeviceMatrix& out) {
  const int stride = part_stride(out.cols);
  ESPALIER_TRY(out.memory.ensure(out.rows * out.parts * stride * 2));
  ESPALIER_TRY(floats_.ensure(rows * cols * kFloatBytes));
  ESPALIER_CUDA_TRY(cudaMemcpyAsync(floats_.data(), host_.as<void>(), static_cast<size_t>(rows * cols * kFloatBytes),
                                    cudaMemcpyHostToDevice, stream_));
  return split_rows({.rows = rows,
                     .cols = cols,
                     .source = floats_.as<float>(),
                     .out_rows = out.rows,
                     .out = {out.memory.as<uint16_t>(), out.parts, stride}},
                    stream_);
}

Status LayerUploader::linear(ThreadPool& pool, const Linear& from, int64_t rows, int64_t cols, DeviceMatrix& out) {
  const PackedMatrix& matrix = from.weights;
  const Result<float*> floats = host(matrix.rows() * matrix.cols());
  if (!floats.is_ok()) return floats.status();
  matrix.unpack(pool, floats.value());
  out.rows = rows;
  out.cols = cols;
  out.parts = parts_of(is_bf16(from));
  return upload(matrix.rows(), matrix.cols(), out);
}

Status LayerUploader::attention(const RunnableLayer& layer, DeviceLayer& out) {
  const AttentionSpec& spec = layer.spec.attention;
  if (spec.head_dim > kMostHeadDim || layer.hidden > kMostWidth) {
    return Status(Code::kUsage, "the GPU takes heads of up to " + std::to_string(kMostHeadDim) +
                                    " elements and a hidden size of up to " + std::to_string(kMostWidth) + ", not " +
                                    std::to_string(spec.head_dim) + " and " + std::to_string(layer.hidden) +
                                    "; prune this model on the CPU (device: cpu)");
  }
  out.heads = {spec.heads, spec.kv_heads, spec.head_dim};
  ESPALIER_TRY(upload_vector(layer.spec.attention_norm, out.attention_norm));
  ESPALIER_TRY(upload_vector(layer.spec.feed_forward_norm, out.feed_forward_norm));
  ESPALIER_TRY(upload_vector(spec.q_norm, out.q_norm));
  ESPALIER_TRY(upload_vector(spec.k_norm, out.k_norm));
  ESPALIER_TRY(upload_vector(spec.o_bias, out.output_bias));
  const auto stack = [&](std::initializer_list<const WeightRef*> refs, DeviceMatrix& matrix) -> Status {
    matrix.cols = (*refs.begin())->cols;
    for (const WeightRef* ref : refs) {
      matrix.rows += ref->rows;
      matrix.parts = std::max(matrix.parts, parts_of(ref->dtype == DType::kBF16));
    }
    const Result<float*> floats = host(matrix.rows * matrix.cols);
    if (!floats.is_ok()) return floats.status();
    float* to = floats.value();
    for (const WeightRef* ref : refs) {
      const Result<HostMatrix> host = HostMatrix::load(*ref, &layer.pool);
      if (!host.is_ok()) return host.status();
      layer.pool.parallel_for(ref->rows, 64, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) host.value().read_row(row, to + row * ref->cols);
      });
      to += ref->rows * ref->cols;
    }
    return upload(matrix.rows, matrix.cols, matrix);
  };
  ESPALIER_TRY(stack({&spec.q, &spec.k, &spec.v}, out.qkv));
  ESPALIER_TRY(stack({&spec.o}, out.output));
  return upload_qkv_bias(spec, out.qkv_bias);
}

Status LayerUploader::mlp(ThreadPool& pool, const Mlp& from, int64_t width, DeviceMlp& out) {
  const int64_t hidden = from.gate.weights.cols();
  ESPALIER_TRY(linear(pool, from.gate, width, hidden, out.gate));
  ESPALIER_TRY(linear(pool, from.up, width, hidden, out.up));
  return linear(pool, from.down, hidden, width, out.down);
}

Status LayerUploader::feed_forward(const RunnableLayer& layer, DeviceLayer& out) {
  std::vector<FeedForwardPart>& parts = layer.layer.feed_forward();
  out.feed_forward.resize(parts.size());
  for (size_t p = 0; p < parts.size(); ++p) {
    FeedForwardPart& from = parts[p];
    DevicePart& to = out.feed_forward[p];
    to.experts.resize(from.experts().size());
    to.width = 0;
    for (const Mlp& mlp : from.experts()) to.width = std::max(to.width, mlp.width());
    for (size_t e = 0; e < to.experts.size(); ++e) {
      ESPALIER_TRY(mlp(layer.pool, from.experts()[e], to.width, to.experts[e]));
    }
    if (from.is_routed()) {
      const Linear& router = from.router();
      ESPALIER_TRY(linear(layer.pool, router, router.weights.rows(), router.weights.cols(), to.router));
    } else if (!from.output_gate().empty()) {
      const Result<float*> floats = host(layer.hidden);
      if (!floats.is_ok()) return floats.status();
      std::copy(from.output_gate().begin(), from.output_gate().end(), floats.value());
      to.router.rows = 1;
      to.router.cols = layer.hidden;
      to.router.parts = 2;
      ESPALIER_TRY(upload(1, layer.hidden, to.router));
    }
  }
  return Status::ok();
}

}  // namespace espalier::cuda
