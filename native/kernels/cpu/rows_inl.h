// Operations on the rows of activations: norms, activation, softmax, rotation. Compiled once for each instruction set.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

void rms_norm(const float* x, const float* weight, int64_t n, float epsilon, float* out) {
  Vf squares = {};
  int64_t i = 0;
  for (; i + kVectorFloats <= n; i += kVectorFloats) {
    const Vf v = load(x + i);
    squares += v * v;
  }
  const Vf tail = load_first(x + i, n - i);
  squares += tail * tail;
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + epsilon);
  for (int64_t k = 0; k < n; ++k) out[k] = x[k] * scale * weight[k];
}

// A float's bits rounded to bf16, to nearest even, as the upper half of a float; NaN stays NaN.
ESPALIER_INLINE uint32_t rounded_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return (is_nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
}

void round_row(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = rounded_bits(x[i]);
    __builtin_memcpy(out + i, &bits, sizeof bits);
  }
}

// kBlockInputs inputs of one token.
ESPALIER_INLINE void fill_tile_row(const float* __restrict x, uint16_t* __restrict out) {
  for (int i = 0; i < kBlockInputs; ++i) out[i] = static_cast<uint16_t>(rounded_bits(x[i]) >> 16);
}

void fill_tiles(const float* x, int64_t x_stride, int64_t tokens, int64_t cols, int64_t pair, uint16_t* tiles) {
  const TileLayout layout = TileLayout::of(tokens, cols);
  const int64_t first = pair * 2 * kTileTokens;
  for (int64_t s = 0; s < layout.steps; ++s) {
    const int64_t block = s / TileLayout::kTileSteps;
    uint16_t* out = tiles + layout.offset(block, pair) + s % TileLayout::kTileSteps * 2 * TileLayout::kElements;
    const int64_t count = cols - s * kBlockInputs < kBlockInputs ? cols - s * kBlockInputs : kBlockInputs;
    for (int64_t t = first; t < first + 2 * kTileTokens; ++t, out += kBlockInputs) {
      const float* row = x + t * x_stride + s * kBlockInputs;
      if (t < tokens && count == kBlockInputs) {
        fill_tile_row(row, out);
        continue;
      }
      float padded[kBlockInputs] = {};
      for (int64_t i = 0; t < tokens && i < count; ++i) padded[i] = row[i];
      fill_tile_row(padded, out);
    }
  }
}

ESPALIER_INLINE Vf silu(Vf x) { return x / (exp(-x) + 1.0f); }

void silu_multiply(const float* gate, const float* up, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kVectorFloats <= n; i += kVectorFloats) store(out + i, silu(load(gate + i)) * load(up + i));
  store_first(out + i, n - i, silu(load_first(gate + i, n - i)) * load_first(up + i, n - i));
}

// exp(x − maximum) into `out` (may be x); returns the sum. The lanes past n count as nothing.
float exponentials(const float* x, int64_t n, float maximum, float* out) {
  Vf total = {};
  int64_t i = 0;
  for (; i + kVectorFloats <= n; i += kVectorFloats) {
    const Vf e = exp(load(x + i) - maximum);
    if (out != nullptr) store(out + i, e);
    total += e;
  }
  float result = sum(total);
  if (i < n) {
    const Vf e = exp(load_first(x + i, n - i) - maximum);
    if (out != nullptr) store_first(out + i, n - i, e);
    for (int64_t k = 0; k < n - i; ++k) result += e[k];
  }
  return result;
}

float maximum_of(const float* x, int64_t n) {
  if (n < kVectorFloats) {
    float best = x[0];
    for (int64_t i = 1; i < n; ++i) best = x[i] > best ? x[i] : best;
    return best;
  }
  Vf best = load(x + n - kVectorFloats);
  for (int64_t i = 0; i + kVectorFloats <= n; i += kVectorFloats) best = max(best, load(x + i));
  return max_lane(best);
}

void softmax(float* x, int64_t n) {
  const float scale = 1.0f / exponentials(x, n, maximum_of(x, n), x);
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

// e^min(x, 0) / (1 + e^−|x|), which neither overflows nor rounds a small result away.
ESPALIER_INLINE Vf sigmoid(Vf x) { return exp(-max(-x, broadcast(0))) / (exp(-max(x, -x)) + 1.0f); }

void sigmoid(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + kVectorFloats <= n; i += kVectorFloats) store(x + i, sigmoid(load(x + i)));
  store_first(x + i, n - i, sigmoid(load_first(x + i, n - i)));
}

double log_sum_exp(const float* x, int64_t n) {
  const float maximum = maximum_of(x, n);
  return std::log(static_cast<double>(exponentials(x, n, maximum, nullptr))) + static_cast<double>(maximum);
}

void axpy(float a, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

void rotate(float* row, int64_t heads, int64_t half, const float* cosines, const float* sines) {
  for (int64_t h = 0; h < heads; ++h, row += 2 * half) {
    int64_t i = 0;
    for (; i + kVectorFloats <= half; i += kVectorFloats) {
      const Vf a = load(row + i);
      const Vf b = load(row + half + i);
      const Vf cosine = load(cosines + i);
      const Vf sine = load(sines + i);
      store(row + i, a * cosine - b * sine);
      store(row + half + i, b * cosine + a * sine);
    }
    for (; i < half; ++i) {
      const float a = row[i];
      const float b = row[half + i];
      row[i] = a * cosines[i] - b * sines[i];
      row[half + i] = b * cosines[i] + a * sines[i];
    }
  }
}

}  // namespace
}  // namespace espalier
