#include "engine/cuda/upload.h"

#include <algorithm>

#include "engine/cuda/host_matrices.h"
#include "engine/cuda/upload_vector.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/routing.h"

namespace espalier::cuda {
namespace {

// bf16 as it is, other types as floats.
Status upload_elements(ThreadPool& pool, const WeightRef& ref, Elements& out) {
  const Result<HostMatrix> host = HostMatrix::load(ref, &pool);
  if (!host.is_ok()) return host.status();
  out.is_bf16 = ref.dtype == DType::kBF16;
  if (!out.is_bf16) return upload_list(host.value().to_floats(), out.memory);
  std::vector<float> scratch;
  Result<DeviceMemory> memory =
      DeviceMemory::copy_of(host.value().source().tile(0, scratch).data, ref.rows * ref.cols * 2);
  if (!memory.is_ok()) return memory.status();
  out.memory = std::move(memory.value());
  return Status::ok();
}

// The work of the functions below, matrix by matrix.
class Uploader {
 public:
  Uploader(ThreadPool& pool, const EngineOptions& options) : pool_(pool), options_(options) {}

  // Weights of the same number of columns, one under the other, as one matrix.
  Status stack(WeightPolicy policy, std::initializer_list<const WeightRef*> refs, Matrices& out) {
    int64_t rows = 0;
    for (const WeightRef* ref : refs) rows += ref->rows;
    HostMatrices host(1, rows, (*refs.begin())->cols);
    int64_t first = 0;
    for (const WeightRef* ref : refs) {
      ESPALIER_TRY(host.read(pool_, policy.precision, *ref, {0, first}));
      first += ref->rows;
    }
    return upload_all(policy, host, out);
  }

  Status layer(const LayerSpec& spec, Layer& out) {
    ESPALIER_TRY(upload_vector(spec.attention_norm, out.attention_norm));
    ESPALIER_TRY(attention(spec.attention, out));
    ESPALIER_TRY(upload_vector(spec.feed_forward_norm, out.feed_forward_norm));
    for (const FeedForwardPartSpec& part : spec.feed_forward) ESPALIER_TRY(feed_forward(part, out));
    return Status::ok();
  }

 private:
  Status upload_all(WeightPolicy policy, const HostMatrices& host, Matrices& out) {
    Result<Matrices> uploaded = host.hold_codes() ? upload_codes(pool_, host.codes(), policy.sparse)
                                                  : upload_matrices(pool_, host.sources(), policy.sparse);
    if (!uploaded.is_ok()) return uploaded.status();
    out = std::move(uploaded.value());
    return Status::ok();
  }

  Status attention(const AttentionSpec& spec, Layer& out) {
    if (spec.head_dim > kMostHeadDim) {
      return Status(Code::kUsage, "the GPU's attention takes heads of up to " + std::to_string(kMostHeadDim) +
                                      " elements, not " + std::to_string(spec.head_dim));
    }
    out.heads = {spec.heads, spec.kv_heads, spec.head_dim};
    out.scale = spec.scale;
    out.window = static_cast<int>(spec.window);
    out.clip = spec.clip;
    ESPALIER_TRY(stack(options_.rest, {&spec.q, &spec.k, &spec.v}, out.qkv));
    ESPALIER_TRY(stack(options_.rest, {&spec.o}, out.output));
    ESPALIER_TRY(biases(spec, out));
    ESPALIER_TRY(upload_vector(spec.q_norm, out.q_norm));
    ESPALIER_TRY(upload_vector(spec.k_norm, out.k_norm));
    const int64_t width = static_cast<int64_t>(spec.kv_heads) * spec.head_dim;
    const int64_t bytes = options_.kv_blocks * kKvTokens * width * (options_.kv_type == KvType::kBf16 ? 2 : 4);
    for (DeviceMemory* memory : {&out.keys, &out.values}) {
      Result<DeviceMemory> cache = DeviceMemory::allocate(bytes);
      if (!cache.is_ok()) return Status(cache.status().code(), "KV cache: " + cache.status().message());
      *memory = std::move(cache.value());
    }
    return Status::ok();
  }

  static Status biases(const AttentionSpec& spec, Layer& out) {
    ESPALIER_TRY(upload_vector(spec.o_bias, out.output_bias));
    return upload_qkv_bias(spec, out.qkv_bias);
  }

  Status feed_forward(const FeedForwardPartSpec& spec, Layer& out) {
    FeedForwardPart& part = out.feed_forward.emplace_back();
    if (spec.kind == FeedForwardPartSpec::Kind::kDense) {
      if (spec.output_gate.present()) {
        part.router_rows = 1;
        part.routing.scoring = Scoring::kSigmoid;
        ESPALIER_TRY(upload_elements(pool_, spec.output_gate, part.router));
        ESPALIER_TRY(upload_list(std::vector<int32_t>{0}, part.expert_of_row));
      }
      return experts(options_.rest, {&spec.mlp, 1}, part);
    }
    part.is_routed = true;
    part.router_rows = static_cast<int>(spec.router.rows);
    part.routing = spec.routing;
    if (part.router_rows > kMostExperts || part.routing.top_k > kMostChosen) {
      return Status(Code::kUsage, "the GPU's router takes up to " + std::to_string(kMostExperts) + " experts and " +
                                      std::to_string(kMostChosen) + " of them a token");
    }
    ESPALIER_TRY(upload_elements(pool_, spec.router, part.router));
    ESPALIER_TRY(upload_list(spec.expert_of_row, part.expert_of_row));
    ESPALIER_TRY(upload_list(spec.routing.correction_bias, part.correction_bias));
    ESPALIER_TRY(upload_list(spec.routing.skip_below, part.skip_below));
    return experts(options_.experts, spec.experts, part);
  }

  Status experts(WeightPolicy policy, std::span<const MlpSpec> specs, FeedForwardPart& part) {
    const auto count = static_cast<int64_t>(specs.size());
    const int64_t hidden = specs.front().gate.cols;
    part.experts = static_cast<int>(count);
    part.width = part_stride(widest(specs, [](const MlpSpec& mlp) { return mlp.gate.rows; }));
    {
      HostMatrices host(count, 2 * part.width, hidden);
      for (int64_t e = 0; e < count; ++e) {
        const MlpSpec& mlp = specs[static_cast<size_t>(e)];
        ESPALIER_TRY(host.read(pool_, policy.precision, mlp.gate, {e, 0, true}));
        ESPALIER_TRY(host.read(pool_, policy.precision, mlp.up, {e, 8, true}));
      }
      ESPALIER_TRY(upload_all(policy, host, part.gate_up));
    }
    HostMatrices host(count, hidden, part.width);
    for (int64_t e = 0; e < count; ++e) {
      ESPALIER_TRY(host.read(pool_, policy.precision, specs[static_cast<size_t>(e)].down, {e, 0}));
    }
    return upload_all(policy, host, part.down);
  }

  ThreadPool& pool_;
  const EngineOptions& options_;
};

Result<Matrices> upload_tiles(const Result<TiledWeights>& tiled) {
  if (!tiled.is_ok()) return tiled.status();
  const TiledWeights& host = tiled.value();
  Matrices out;
  Result<DeviceMemory> tiles = DeviceMemory::copy_of(host.tiles.data(), static_cast<int64_t>(host.tiles.size()));
  if (!tiles.is_ok()) return tiles.status();
  out.tiles = std::move(tiles.value());
  ESPALIER_TRY(upload_list(host.starts, out.starts));
  out.view = describe_tiles(host, out.tiles.as<uint8_t>(), out.starts.as<uint32_t>());
  return Result<Matrices>(std::move(out));
}

Status check_options(const ModelSpec& spec, const EngineOptions& options) {
  for (const WeightPolicy* policy : {&options.experts, &options.rest}) {
    if (policy->precision == Precision::kInt4) {
      return Status(Code::kUsage, "the GPU takes weights as source, bf16 or int8 in this version, not as int4");
    }
  }
  if (options.kv_type == KvType::kInt8) {
    return Status(Code::kUsage, "the GPU's KV cache takes float32 or bf16 in this version, not int8");
  }
  if (spec.hidden_size > kMostWidth) {
    return Status(Code::kUsage, "the GPU's kernels take hidden states of up to " + std::to_string(kMostWidth) +
                                    ", not " + std::to_string(spec.hidden_size));
  }
  return Status::ok();
}

}  // namespace

Result<Matrices> upload_matrices(ThreadPool& pool, std::span<const MatrixSource> matrices, bool sparse) {
  const TileChoice choice = sparse ? choose_tiles(pool, matrices) : TileChoice{};
  return upload_tiles(tile_weights(pool, choice.layout, matrices, choice.n));
}

Result<Matrices> upload_codes(ThreadPool& pool, std::span<const CodeMatrix> matrices, bool sparse) {
  const TileLayout layout = sparse ? choose_code_tiles(pool, matrices) : TileLayout::kDenseInt8;
  return upload_tiles(tile_codes(pool, layout, matrices));
}

Result<Model> begin_model(const ModelSpec& spec, const EngineOptions& options) {
  ESPALIER_TRY(check_options(spec, options));
  Model model;
  model.hidden = static_cast<int>(spec.hidden_size);
  model.vocabulary = static_cast<int>(spec.vocabulary_size);
  model.norm_epsilon = spec.norm_epsilon;
  model.rope_half = static_cast<int>(spec.rope.inverse_frequencies.size());
  model.rope_scale = spec.rope.scale;
  model.kv_is_bf16 = options.kv_type == KvType::kBf16;
  model.parts = options.activations == Activations::kBf16 ? 1 : 2;
  ESPALIER_TRY(upload_list(spec.rope.inverse_frequencies, model.inverse_frequencies));
  return Result<Model>(std::move(model));
}

Status upload_embedding(ThreadPool& pool, const ModelSpec& spec, Elements& out) {
  return upload_elements(pool, spec.embedding, out);
}

Status upload_layer(ThreadPool& pool, const LayerSpec& spec, const EngineOptions& options, Layer& out) {
  return Uploader(pool, options).layer(spec, out);
}

Status upload_head(ThreadPool& pool, const ModelSpec& spec, const EngineOptions& options, Model& model) {
  ESPALIER_TRY(upload_vector(spec.final_norm, model.final_norm));
  return Uploader(pool, options).stack(options.rest, {&spec.head}, model.head);
}

}  // namespace espalier::cuda
