// Packed products on the thread pool.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "engine/inputs.h"
#include "engine/weight_policy.h"
#include "engine/weight_ref.h"
#include "kernels/cpu/kernels.h"

namespace espalier {

// What every operation of a step runs on.
struct Compute {
  ThreadPool& pool;
  const CpuKernels& kernels;
  Activations activations = Activations::kFloat32;
};

struct Linear {
  PackedMatrix weights;
  std::vector<float> bias;  // empty where there is none

  static Result<Linear> load(ThreadPool& pool, WeightPolicy policy, const WeightRef& weights,
                             const WeightRef& bias = {});
  // Packs weights that are in memory as floats and come from a checkpoint of type `source`.
  static Result<Linear> from_floats(ThreadPool& pool, WeightPolicy policy, DType source, int64_t rows, int64_t cols,
                                    const float* data);
};

// y = x Wᵀ + bias: x is [tokens][x_stride], y is [tokens][y_stride]. With `up`, of the same shape,
// y = silu(x Wᵀ + bias) ⊙ (x upᵀ + its bias): the first half of a gated feed-forward layer.
struct Product {
  const Linear* linear;
  const float* x;
  int64_t x_stride;
  int64_t tokens;
  float* y;
  int64_t y_stride;
  const Linear* up = nullptr;
};

// Runs independent products as one loop over all their tile rows, so that there is one barrier for all and the load is
// balanced whatever their sizes.
void multiply(const Compute& compute, std::span<const Product> products);

// A vector weight (norm, bias) as floats.
Result<std::vector<float>> load_vector(const WeightRef& ref);

}  // namespace espalier
