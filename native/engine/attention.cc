#include "engine/attention.h"

#include <algorithm>
#include <array>

namespace espalier {
namespace {

void clamp(float* x, int64_t n, float limit) {
  for (int64_t i = 0; i < n; ++i) x[i] = std::clamp(x[i], -limit, limit);
}

// RMSNorm of each head, or of the whole row, by the length of the weight.
void normalise(const CpuKernels& kernels, float* row, int64_t width, const std::vector<float>& weight, float epsilon) {
  const auto part = static_cast<int64_t>(weight.size());
  if (part == 0) return;
  for (int64_t first = 0; first < width; first += part)
    kernels.rms_norm(row + first, weight.data(), part, epsilon, row + first);
}

}  // namespace

Result<Attention> Attention::load(ThreadPool& pool, WeightPolicy policy, const AttentionSpec& spec) {
  Attention a;
  a.shape_ = {.heads = spec.heads,
              .kv_heads = spec.kv_heads,
              .head_dim = spec.head_dim,
              .scale = spec.scale,
              .window = spec.window};
  a.clip_ = spec.clip;
  const auto load_into = [&](Linear& out, const WeightRef& weights, const WeightRef& bias) -> Status {
    Result<Linear> loaded = Linear::load(pool, policy, weights, bias);
    if (!loaded.is_ok()) return loaded.status();
    out = std::move(loaded.value());
    return Status::ok();
  };
  ESPALIER_TRY(load_into(a.q_, spec.q, spec.q_bias));
  ESPALIER_TRY(load_into(a.k_, spec.k, spec.k_bias));
  ESPALIER_TRY(load_into(a.v_, spec.v, spec.v_bias));
  ESPALIER_TRY(load_into(a.o_, spec.o, spec.o_bias));
  for (auto [ref, out] : {std::pair{&spec.q_norm, &a.q_norm_}, std::pair{&spec.k_norm, &a.k_norm_}}) {
    if (!ref->present()) continue;
    Result<std::vector<float>> loaded = load_vector(*ref);
    if (!loaded.is_ok()) return loaded.status();
    *out = std::move(loaded.value());
  }
  return a;
}

int64_t Attention::bytes() const {
  return q_.weights.bytes() + k_.weights.bytes() + v_.weights.bytes() + o_.weights.bytes();
}

void Attention::prepare_heads(const Compute& compute, const RopeRows& rope, float norm_epsilon, int64_t row) {
  const int64_t q_width = static_cast<int64_t>(shape_.heads) * shape_.head_dim;
  const int64_t kv_width = static_cast<int64_t>(shape_.kv_heads) * shape_.head_dim;
  float* q = queries_.data() + row * q_width;
  float* k = keys_.data() + row * kv_width;
  normalise(compute.kernels, q, q_width, q_norm_, norm_epsilon);
  normalise(compute.kernels, k, kv_width, k_norm_, norm_epsilon);
  // OLMoE clamps after the norms, before the rotation.
  if (clip_ > 0) {
    clamp(q, q_width, clip_);
    clamp(k, kv_width, clip_);
    clamp(values_.data() + row * kv_width, kv_width, clip_);
  }
  const float* cosines = rope.cosines.data() + row * rope.half;
  const float* sines = rope.sines.data() + row * rope.half;
  compute.kernels.rotate(q, shape_.heads, rope.half, cosines, sines);
  compute.kernels.rotate(k, shape_.kv_heads, rope.half, cosines, sines);
}

void Attention::write_cache(const Compute& compute, const Slice& slice, int64_t index, KvLayer& cache) const {
  const int64_t position = slice.position + index;
  const int64_t row = slice.first_row + index;
  const int64_t block = slice.blocks[static_cast<size_t>(position / kKvBlock)];
  const auto write = compute.kernels.write_kv[static_cast<size_t>(cache.type())];
  for (int64_t h = 0; h < shape_.kv_heads; ++h) {
    write({.key = keys_.data() + (row * shape_.kv_heads + h) * shape_.head_dim,
           .value = values_.data() + (row * shape_.kv_heads + h) * shape_.head_dim,
           .head_dim = shape_.head_dim,
           .place = position % kKvBlock,
           .keys = cache.keys(h) + block * cache.block_stride(),
           .values = cache.values(h) + block * cache.block_stride()});
  }
}

void Attention::forward(const Compute& compute, const Batch& batch, const RopeRows& rope, float norm_epsilon,
                        KvLayer& cache, const float* x, int64_t hidden, float* out) {
  const int64_t q_width = static_cast<int64_t>(shape_.heads) * shape_.head_dim;
  const int64_t kv_width = static_cast<int64_t>(shape_.kv_heads) * shape_.head_dim;
  queries_.ensure(static_cast<size_t>(batch.rows * q_width));
  keys_.ensure(static_cast<size_t>(batch.rows * kv_width));
  values_.ensure(static_cast<size_t>(batch.rows * kv_width));
  mixed_.ensure(static_cast<size_t>(batch.rows * q_width));

  const std::array<Product, 3> projections = {{
      {&q_, x, hidden, batch.rows, queries_.data(), q_width},
      {&k_, x, hidden, batch.rows, keys_.data(), kv_width},
      {&v_, x, hidden, batch.rows, values_.data(), kv_width},
  }};
  multiply(compute, projections);

  std::vector<const Slice*> slice_of(static_cast<size_t>(batch.rows));
  for (const Slice& slice : batch.slices) {
    for (int64_t i = 0; i < slice.count; ++i) slice_of[static_cast<size_t>(slice.first_row + i)] = &slice;
  }
  // Tokens of one block share the cache lines of its keys.
  const int64_t grain = batch.rows == static_cast<int64_t>(batch.slices.size()) ? 4 : kKvBlock;
  compute.pool.parallel_for(batch.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      prepare_heads(compute, rope, norm_epsilon, row);
      const Slice& slice = *slice_of[static_cast<size_t>(row)];
      write_cache(compute, slice, row - slice.first_row, cache);
    }
  });

  attend_.run(compute, shape_, batch, cache, queries_.data(), mixed_.data());
  const Product output{&o_, mixed_.data(), q_width, batch.rows, out, hidden};
  multiply(compute, std::span(&output, 1));
}

}  // namespace espalier
