#include "prune/value_grid.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "core/dtype.h"
#include "prune/panels.h"

namespace espalier {
namespace {

// Steps between numbers of 5 significant bits, in the bits of a float.
constexpr uint32_t kStep = uint32_t{1} << 19;
// Scales tried below the one that holds the largest weight: down to 0.6 of it or less.
constexpr int kNarrower = 13;
constexpr float kLeastNormalF16 = 0x1p-14f;

float rounded_f16(float value) { return f16_to_float(float_to_f16(value)); }

// To the nearest integer, ties to even: adding 1.5 · 2²³ leaves no room for a fraction.
float nearest(float value) { return (value + 12582912.0f) - 12582912.0f; }

// The first scale of int8 that holds `largest` and is found again in what is stored of 127 · scale.
float int8_scale(float largest) {
  uint32_t bits = (std::bit_cast<uint32_t>(largest) + 0xffffu) & 0xffff0000u;
  for (int tries = 0; tries < 256; ++tries, bits += 0x10000u) {
    const float scale = rounded_f16(std::bit_cast<float>(bits) / 127.0f);
    const float end = 127.0f * scale;
    const bool survives = rounded_f16(bf16_to_float(float_to_bf16(end)) / 127.0f) == scale &&
                          rounded_f16(rounded_f16(end) / 127.0f) == scale;
    if (scale > 0 && survives) return scale;
  }
  return 0;
}

// `first` rounded up to 5 significant bits, as bits.
uint32_t widest_scale(float first) { return (std::bit_cast<uint32_t>(first) + kStep - 1) & ~(kStep - 1); }

}  // namespace

PanelGrid::PanelGrid(Values values, const float* columns, int64_t width, const float* importance)
    : is_int4_(values == Values::kInt4) {
  extreme_.fill(0);
  anchor_.fill(-1);
  for (int64_t j = 0; j < width; ++j) {
    const float* column = columns + j * kPanel;
    for (size_t r = 0; r < kPanel; ++r) {
      const bool larger = std::fabs(column[r]) > std::fabs(extreme_[r]);
      extreme_[r] = larger ? column[r] : extreme_[r];
      anchor_[r] = larger ? static_cast<int32_t>(j) : anchor_[r];
    }
  }
  if (is_int4_) {
    choose_int4(columns, width, importance);
  } else {
    choose_int8();
  }
  for (size_t r = 0; r < kPanel; ++r) inverse_[r] = scale_[r] == 0 ? 0.0f : 1.0f / scale_[r];
}

void PanelGrid::choose_int8() {
  for (size_t r = 0; r < kPanel; ++r) scale_[r] = anchor_[r] < 0 ? 0.0f : int8_scale(std::fabs(extreme_[r]));
}

// Both the range −7 to 7 and the one whose −8 is on the side of the largest weight, each also narrower: to clip what is
// largest can pay.
void PanelGrid::choose_int4(const float* columns, int64_t width, const float* importance) {
  scale_.fill(0);
  std::array<float, kPanel> least;
  least.fill(INFINITY);
  std::array<float, kPanel> scale;
  std::array<float, kPanel> inverse;
  std::array<float, kPanel> error;
  for (const bool uses_eight : {false, true}) {
    for (uint32_t narrower = 0; narrower < kNarrower; ++narrower) {
      for (size_t r = 0; r < kPanel; ++r) {
        const uint32_t bits = widest_scale(std::fabs(extreme_[r]) / (uses_eight ? 8.0f : 7.0f));
        float s = bits > narrower * kStep ? std::bit_cast<float>(bits - narrower * kStep) : 0.0f;
        if (s < kLeastNormalF16) s = rounded_f16(s);  // of fewer bits still
        scale[r] = uses_eight && extreme_[r] > 0 ? -s : s;
        inverse[r] = s == 0 ? 0.0f : 1.0f / scale[r];
      }
      error.fill(0);
      for (int64_t j = 0; j < width; ++j) {
        const float* column = columns + j * kPanel;
        for (size_t r = 0; r < kPanel; ++r) {
          float q = nearest(column[r] * inverse[r]);
          q = q < -8.0f ? -8.0f : q;
          q = q > 7.0f ? 7.0f : q;
          const float difference = column[r] - q * scale[r];
          error[r] += importance[j] * difference * difference;
        }
      }
      for (size_t r = 0; r < kPanel; ++r) {
        const bool better = error[r] < least[r];
        scale_[r] = better ? scale[r] : scale_[r];
        least[r] = better ? error[r] : least[r];
      }
    }
  }
}

void PanelGrid::round(int64_t j, const float* weights, float* target) {
  const float low = is_int4_ ? -8.0f : -127.0f;
  const float high = is_int4_ ? 7.0f : 127.0f;
  for (size_t r = 0; r < kPanel; ++r) {
    const float steps = weights[r] * inverse_[r];
    float q = nearest(steps);
    q = q < low ? low : q;
    q = q > high ? high : q;
    if (anchor_[r] == j && reached_[r] == 0 && std::fabs(q) < high) q = steps < 0 ? -high : high;
    reached_[r] = std::fabs(q) >= high ? 1 : reached_[r];
    target[r] = q * scale_[r];
  }
}

void round_to_nearest(ThreadPool& pool, Values values, float* weights, int64_t rows, int64_t cols) {
  const std::vector<float> importance(kGroup, 1.0f);
  pool.parallel_for(panel_count(rows), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> columns(kGroup * kPanel);
    std::array<float, kPanel> rounded;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t count = panel_width(rows, t);
      for (int64_t first = 0; first < cols; first += kGroup) {
        const int64_t width = std::min<int64_t>(kGroup, cols - first);
        float* source = weights + t * kPanel * cols + first;
        pack_transposed(source, cols, count, width, columns.data());
        PanelGrid grid(values, columns.data(), width, importance.data());
        for (int64_t j = 0; j < width; ++j) {
          float* column = columns.data() + j * kPanel;
          grid.round(j, column, rounded.data());
          // A zero is 0 times any scale; + 0 makes a negative one positive.
          for (int64_t r = 0; r < kPanel; ++r) column[r] = rounded[static_cast<size_t>(r)] + 0.0f;
        }
        unpack_transposed(columns.data(), count, width, source, cols);
      }
    }
  });
}

}  // namespace espalier
