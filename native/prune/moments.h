// What the distribution of a matrix's weights looks like.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"

namespace espalier {

struct WeightMoments {
  int64_t zeros = 0;
  int64_t size = 0;
  // Fourth standardised moment, E[((w − μ) / σ)⁴]: 3 for a normal distribution, large where most weights are near zero.
  // 0 where all weights are equal.
  double kurtosis = 0;
  // The same of the weights that are not zero.
  double kurtosis_kept = 0;
};

// Accumulated in float64; the same bits for any number of threads.
WeightMoments weight_moments(ThreadPool& pool, const float* weights, int64_t size);

}  // namespace espalier
