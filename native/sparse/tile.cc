#include "sparse/tile.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/dtype.h"

namespace espalier {
namespace {

struct Quantiser {
  int low;
  int high;
  int bias;
};

constexpr Quantiser kInt8 = {-127, 127, 128};
constexpr Quantiser kInt4 = {-8, 7, 8};

// To the nearest integer, ties to even: adding 1.5 · 2²³ leaves no room for a fraction.
float nearest(float value) { return (value + 12582912.0f) - 12582912.0f; }

// weight / scale as the integer that is stored; `inverse` is 1 / scale, or 0.
float quantise(const Quantiser& to, float weight, float inverse) {
  return std::clamp(nearest(weight * inverse), static_cast<float>(to.low), static_cast<float>(to.high));
}

float inverse_of(float scale) { return scale == 0 ? 0 : 1 / scale; }

float squared_error(const Quantiser& to, const float* weights, float scale) {
  const float inverse = inverse_of(scale);
  float partial[8] = {};  // eight sums, so that the loop needs no order
  for (int k = 0; k < kGroup; k += 8) {
    for (int i = 0; i < 8; ++i) {
      const float error = weights[k + i] - quantise(to, weights[k + i], inverse) * scale;
      partial[i] += error * error;
    }
  }
  float total = 0;
  for (const float sum : partial) total += sum;
  return total;
}

// As it will be read back.
float stored(float scale) { return f16_to_float(float_to_f16(scale)); }

float int4_scale(const float* weights, float extreme) {
  // Both the symmetric range and the one that uses −8, a little narrowed: clipping the largest can pay.
  constexpr float kNarrow[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f};
  float best = 0;
  float least = INFINITY;
  for (const float full : {std::abs(extreme) / 7, extreme / -8}) {
    for (const float narrow : kNarrow) {
      const float scale = stored(full * narrow);
      const float error = squared_error(kInt4, weights, scale);
      if (error < least) {
        least = error;
        best = scale;
      }
    }
  }
  return best;
}

void encode_group(Values values, const float* weights, int row, int64_t group, Tile& tile) {
  float extreme = 0;
  for (int k = 0; k < kGroup; ++k) {
    if (std::abs(weights[k]) > std::abs(extreme)) extreme = weights[k];
  }
  const bool is_int8 = values == Values::kInt8;
  const Quantiser& to = is_int8 ? kInt8 : kInt4;
  const float scale = is_int8 ? stored(std::abs(extreme) / 127) : int4_scale(weights, extreme);
  const float inverse = inverse_of(scale);
  tile.scales[static_cast<size_t>(group * kTileRows + row)] = float_to_f16(scale);
  for (int k = 0; k < kGroup; ++k) {
    const int64_t col = group * kGroup + k;
    const auto at = static_cast<size_t>((col / 4) * 64 + row * 4 + col % 4);
    tile.codes[at] = static_cast<uint32_t>(static_cast<int>(quantise(to, weights[k], inverse)) + to.bias);
  }
}

}  // namespace

void mark_nonzero(Values values, int64_t padded_cols, const float* rows, Tile& tile) {
  const int step = vector_step(values);
  tile.nonzero.resize(static_cast<size_t>(padded_cols * kTileRows));
  for (int r = 0; r < kTileRows; ++r) {
    const float* row = rows + r * padded_cols;
    for (int64_t k = 0; k < padded_cols; k += step) {
      uint8_t* out = tile.nonzero.data() + k * kTileRows + r * step;
      for (int i = 0; i < step; ++i) {
        // Only +0 is dropped; −0 is a value of its own.
        const uint32_t bits = std::bit_cast<uint32_t>(row[k + i]);
        out[i] = bits != 0 && (values != Values::kBf16 || float_to_bf16(row[k + i]) != 0);
      }
    }
  }
}

void encode_tile(Values values, int64_t padded_cols, const float* rows, Tile& tile) {
  tile.codes.resize(static_cast<size_t>(padded_cols * kTileRows));
  if (is_quantised(values)) {
    tile.scales.resize(static_cast<size_t>(padded_cols / kGroup * kTileRows));
    for (int r = 0; r < kTileRows; ++r) {
      for (int64_t g = 0; g < padded_cols / kGroup; ++g) {
        encode_group(values, rows + r * padded_cols + g * kGroup, r, g, tile);
      }
    }
    return;
  }
  const int step = vector_step(values);
  for (int r = 0; r < kTileRows; ++r) {
    const float* row = rows + r * padded_cols;
    for (int64_t k = 0; k < padded_cols; k += step) {
      uint32_t* out = tile.codes.data() + k * kTileRows + r * step;
      for (int i = 0; i < step; ++i) {
        out[i] = values == Values::kF32 ? std::bit_cast<uint32_t>(row[k + i]) : float_to_bf16(row[k + i]);
      }
    }
  }
}

float decode(Values values, uint32_t code, const uint16_t* scales, int64_t group, int row) {
  switch (values) {
    case Values::kF32: return std::bit_cast<float>(code);
    case Values::kBf16: return bf16_to_float(static_cast<uint16_t>(code));
    case Values::kInt8:
    case Values::kInt4: {
      const int bias = values == Values::kInt8 ? kInt8.bias : kInt4.bias;
      return static_cast<float>(static_cast<int>(code) - bias) * f16_to_float(scales[group * kTileRows + row]);
    }
  }
  return 0;
}

}  // namespace espalier
