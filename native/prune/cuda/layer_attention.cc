#include "prune/cuda/layer_attention.h"

#include "kernels/cuda/activations.h"

namespace espalier::cuda {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));
static_assert(kKvTokens == kKvBlock);

// Kernels take a null pointer for what is not there.
const float* optional(const DeviceMemory& memory) { return memory.bytes() > 0 ? memory.as<float>() : nullptr; }

// Norms of heads, or of the whole row, by the length of the weight.
bool is_whole(const DeviceMemory& norm, int head_dim) { return norm.bytes() != head_dim * kFloatBytes; }

}  // namespace

Status LayerAttention::send_places(const Batch& batch) {
  std::vector<int32_t> positions, tables, blocks;
  for (const Slice& slice : batch.slices) {
    for (int64_t i = 0; i < slice.count; ++i) {
      positions.push_back(static_cast<int32_t>(slice.position + i));
      tables.push_back(static_cast<int32_t>(blocks.size()));
    }
    blocks.insert(blocks.end(), slice.blocks.begin(), slice.blocks.end());
  }
  const int64_t cache =
      static_cast<int64_t>(blocks.size()) * kKvTokens * weights_.heads.kv_heads * weights_.heads.head_dim * kFloatBytes;
  ESPALIER_TRY(keys_.ensure(cache));
  ESPALIER_TRY(values_.ensure(cache));
  if (positions == positions_) return Status::ok();
  const RopeRows rope = RopeRows::compute(layer_.rope, batch);
  ESPALIER_TRY(send_list(rope.cosines, cosines_, stream_));
  ESPALIER_TRY(send_list(rope.sines, sines_, stream_));
  ESPALIER_TRY(send_list(positions, positions_device_, stream_));
  ESPALIER_TRY(send_list(tables, tables_, stream_));
  ESPALIER_TRY(send_list(blocks, blocks_, stream_));
  // The same positions are of the same sequences, whose blocks have the same numbers.
  positions_ = std::move(positions);
  return Status::ok();
}

Status LayerAttention::run(const Batch& batch, float* hidden) {
  const auto rows = static_cast<int>(batch.rows);
  const AttentionSpec& spec = layer_.spec.attention;
  const HeadShape& heads = weights_.heads;
  ESPALIER_TRY(send_places(batch));
  ESPALIER_TRY(input_floats_.ensure(rows * layer_.hidden * kFloatBytes));
  const Result<PartRows> input = part_rows(input_, rows, layer_.hidden);
  if (!input.is_ok()) return input.status();
  NormTask norm{.rows = rows,
                .width = static_cast<int>(layer_.hidden),
                .hidden = hidden,
                .weight = weights_.attention_norm.as<float>(),
                .epsilon = layer_.norm_epsilon,
                .out = input.value()};
  ESPALIER_TRY(add_and_norm(norm, stream_));
  ESPALIER_TRY(products_.multiply(weights_.qkv, input.value(), rows, qkv_));
  ESPALIER_TRY(queries_.ensure(rows * weights_.query_width() * kFloatBytes));
  const RowPlaces places{rows, positions_device_.as<int32_t>(), tables_.as<int32_t>(), blocks_.as<int32_t>()};
  const KvCache cache{keys_.data(), values_.data(), false};
  ESPALIER_TRY(prepare_heads({.places = places,
                              .shape = heads,
                              .source = qkv_.as<float>(),
                              .bias = optional(weights_.qkv_bias),
                              .q_norm = optional(weights_.q_norm),
                              .k_norm = optional(weights_.k_norm),
                              .q_norm_whole = is_whole(weights_.q_norm, heads.head_dim),
                              .k_norm_whole = is_whole(weights_.k_norm, heads.head_dim),
                              .epsilon = layer_.norm_epsilon,
                              .clip = spec.clip,
                              .cosines = cosines_.as<float>(),
                              .sines = sines_.as<float>(),
                              .queries = queries_.as<float>(),
                              .cache = cache},
                             stream_));
  const Result<PartRows> mixed = part_rows(mixed_, rows, weights_.query_width());
  if (!mixed.is_ok()) return mixed.status();
  ESPALIER_TRY(attend({.places = places,
                       .shape = heads,
                       .scale = spec.scale,
                       .window = static_cast<int>(spec.window),
                       .cache = cache,
                       .queries = queries_.as<float>(),
                       .out = mixed.value()},
                      stream_));
  ESPALIER_TRY(products_.multiply(weights_.output, mixed.value(), rows, output_));
  norm.source = output_.as<float>();
  norm.bias = optional(weights_.output_bias);
  norm.weight = weights_.feed_forward_norm.as<float>();
  norm.out_floats = input_floats_.as<float>();
  return add_and_norm(norm, stream_);
}

}  // namespace espalier::cuda
