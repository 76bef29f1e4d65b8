// Bodies of TrainingKernels, compiled for each instruction set with panel_kernels_impl.h: plain loops that the compiler
// turns into vectors.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "prune/panel_kernels.h"

namespace espalier {
namespace {

// eˣ within 2 units in the last place for |x| <= 87, clamped beyond.
inline float exp_clamped(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 87.0f ? 87.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 · 2²³: adding it leaves the nearest integer in the low bits
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

inline void swiglu(int64_t count, const float* gate, const float* up, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = gate[i] / (1.0f + exp_clamped(-gate[i])) * up[i];
}

inline void swiglu_backward(int64_t count, const float* gate, const float* up, const float* gradient,
                            float* gate_gradient, float* up_gradient) {
  for (int64_t i = 0; i < count; ++i) {
    const float sigmoid = 1.0f / (1.0f + exp_clamped(-gate[i]));
    const float slope = sigmoid * (1.0f + gate[i] * (1.0f - sigmoid));
    const float g = gradient[i];
    gate_gradient[i] = g * up[i] * slope;
    up_gradient[i] = g * gate[i] * sigmoid;
  }
}

inline void adam(int64_t count, const AdamStep& step, const float* gradient, const uint8_t* kept, float* weight,
                 float* mean, float* square) {
  for (int64_t i = 0; i < count; ++i) {
    const float use = static_cast<float>(kept[i]);
    const float g = gradient[i] * use;
    mean[i] += (1.0f - step.mean_decay) * (g - mean[i]);
    square[i] += (1.0f - step.square_decay) * (g * g - square[i]);
    weight[i] -= use * step.rate * mean[i] / (std::sqrt(square[i]) + step.epsilon);
  }
}

inline void softmax_columns(int64_t rows, float* values) {
  float most[kPanel];
  float sum[kPanel];
  std::copy(values, values + kPanel, most);
  for (int64_t r = 1; r < rows; ++r) {
    const float* row = values + r * kPanel;
    for (int64_t j = 0; j < kPanel; ++j) most[j] = row[j] > most[j] ? row[j] : most[j];
  }
  std::fill(sum, sum + kPanel, 0.0f);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = values + r * kPanel;
    for (int64_t j = 0; j < kPanel; ++j) {
      row[j] = exp_clamped(row[j] - most[j]);
      sum[j] += row[j];
    }
  }
  for (int64_t j = 0; j < kPanel; ++j) sum[j] = 1.0f / sum[j];
  for (int64_t r = 0; r < rows; ++r) {
    float* row = values + r * kPanel;
    for (int64_t j = 0; j < kPanel; ++j) row[j] *= sum[j];
  }
}

}  // namespace
}  // namespace espalier
