// Products with int8 and int4 weights; compiled once for each instruction set. The including file defines, before this
// header,
//   kIntTokenBlock                     tokens whose accumulators fit the registers
//   Vi start(int32_t sum)              an accumulator before its first dot, given Σ q of the group's activations
//   Vi dot(Vi, Vu bytes, const int8_t* x)   adds, to lane r, Σ (byte[4r + i] − 128) · x[i] for i < 4, given `start`
//   Vf load_f16(const uint16_t*)       16 halves as floats
//
// Within a group of 64 inputs sums are exact integers, so their order is free; across groups each output has one
// float32 chain. An int4 element runs as the byte 16 q + 128, so its products are 16 times too large until the end.
#pragma once

#include <type_traits>

#include "kernels/cpu/matmul_inl.h"

namespace espalier {
namespace {

inline constexpr int kPairs = kGroup / 8;  // pairs of vectors in a group

// Sources give the next two vectors as bytes q + 128 (int8) or 16 q + 128 (int4); `pair` counts within a group. The
// loop takes `kRunGroups` of them at a time, so that which of them it is in is known to the compiler.
struct DenseInt8 {
  static constexpr float kFactor = 1;
  static constexpr int64_t kRunGroups = 1;
  const uint8_t* bytes;

  static DenseInt8 of(const PackedMatrix& weights, int64_t tile) { return {weights.elements(tile)}; }
  ESPALIER_INLINE void next(Vu& a, Vu& b, int pair) {
    if (pair % 2 == 0) {
      for (int line = 0; line < 4; ++line) prefetch(bytes + line * 64);
    }
    a = load_from<Vu>(bytes);
    b = load_from<Vu>(bytes + 64);
    bytes += 128;
  }
};

// Int4 elements expanded to bytes beforehand.
struct ExpandedInt4 : DenseInt8 {
  static constexpr float kFactor = 1.0f / 16;
};

ESPALIER_INLINE Vu high_nibbles(Vu v) { return v & 0xf0f0f0f0u; }
ESPALIER_INLINE Vu low_nibbles(Vu v) { return (v << 4) & 0xf0f0f0f0u; }

struct DenseInt4 {
  static constexpr float kFactor = 1.0f / 16;
  static constexpr int64_t kRunGroups = 1;
  const uint8_t* bytes;

  static DenseInt4 of(const PackedMatrix& weights, int64_t tile) { return {weights.elements(tile)}; }
  ESPALIER_INLINE void next(Vu& a, Vu& b, int pair) {
    if (pair % 4 == 0) {
      for (int line = 0; line < 4; ++line) prefetch(bytes + line * 64);
    }
    const Vu v = load_from<Vu>(bytes);
    bytes += 64;
    a = high_nibbles(v);
    b = low_nibbles(v);
  }
};

template <int T, class Source>
ESPALIER_INLINE void multiply_tile_int(Source source, const uint16_t* scales, int64_t rows, const QuantisedRows& x,
                                       int64_t first, float* y, int64_t y_stride) {
  // One token alone would wait for each dot: its sum runs in several chains.
  constexpr int kChains = T == 1 ? 4 : T == 2 ? 2 : 1;
  Vf total[T] = {};
  const auto add_group = [&](int64_t g) __attribute__((always_inline)) {
    Vi sums[T][kChains];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      sums[t][0] = start(x.sums[(first + t) * x.groups + g]);
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) sums[t][c] = Vi{};
    }
    const int8_t* q = x.q + (first * x.groups + g) * kGroup;
#pragma GCC unroll 8
    for (int pair = 0; pair < kPairs; ++pair) {
      Vu a;
      Vu b;
      source.next(a, b, pair);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const int8_t* at = q + t * x.groups * kGroup + pair * 8;
        sums[t][(2 * pair) % kChains] = dot(sums[t][(2 * pair) % kChains], a, at);
        sums[t][(2 * pair + 1) % kChains] = dot(sums[t][(2 * pair + 1) % kChains], b, at + 4);
      }
    }
    const Vf scale = load_f16(scales + g * kTileRows);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      Vi sum = sums[t][0];
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) sum += sums[t][c];
      total[t] += to_floats(sum) * (scale * (x.scales[(first + t) * x.groups + g] * Source::kFactor));
    }
  };
  int64_t group = 0;
  for (; group + Source::kRunGroups <= x.groups; group += Source::kRunGroups) {
#pragma GCC unroll 2
    for (int64_t i = 0; i < Source::kRunGroups; ++i) add_group(group + i);
  }
  if (group < x.groups) add_group(group);
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) store_rows(y + t * y_stride, rows, total[t]);
}

template <int T, class Source>
void multiply_tokens_int(Source source, const uint16_t* scales, int64_t rows, const QuantisedRows& x, int64_t first,
                         int64_t tokens, float* y, int64_t y_stride) {
  for (; tokens >= T; tokens -= T, first += T, y += T * y_stride) {
    multiply_tile_int<T>(source, scales, rows, x, first, y, y_stride);
  }
  if constexpr (T > 1) {
    if (tokens > 0) multiply_tokens_int<T / 2>(source, scales, rows, x, first, tokens, y, y_stride);
  }
}

// With many tokens the source of a tile row is run once into a buffer of bytes, which `Expanded` reads.
template <class Source, class Expanded>
void multiply_int(const MatmulTask& task) {
  const int64_t vectors = task.weights.vectors();
  std::unique_ptr<uint8_t[]> buffer;
  if (!std::is_same_v<Source, Expanded> && task.tokens > kIntTokenBlock) {
    buffer = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(vectors * 64 + 2 * kPrefetch));
  }
  for_each_tile(task, kIntTokenBlock, [&](int64_t tile, int64_t rows, int64_t first, int64_t count, float* y) {
    const uint16_t* scales = task.weights.scales(tile);
    Source source = Source::of(task.weights, tile);
    if (buffer == nullptr) {
      multiply_tokens_int<kIntTokenBlock>(source, scales, rows, *task.quantised, first, count, y, task.y_stride);
      return;
    }
    for (int64_t v = 0; v < vectors; v += 2) {
      Vu pair[2];
      source.next(pair[0], pair[1], static_cast<int>(v / 2 % kPairs));
      store_to(buffer.get() + v * 64, pair[0]);
      store_to(buffer.get() + v * 64 + 64, pair[1]);
    }
    multiply_tokens_int<kIntTokenBlock>(Expanded{buffer.get()}, scales, rows, *task.quantised, first, count, y,
                                        task.y_stride);
  });
}

inline void dense_int8(const MatmulTask& task) { multiply_int<DenseInt8, DenseInt8>(task); }

inline void dense_int4(const MatmulTask& task) { multiply_int<DenseInt4, ExpandedInt4>(task); }

inline void quantise_row(const float* x, int64_t n, int8_t* q, float* scales, int32_t* sums) {
  for (int64_t first = 0, g = 0; first < n; first += kGroup, ++g) {
    const int64_t count = n - first < kGroup ? n - first : kGroup;
    float largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float magnitude = x[first + i] < 0 ? -x[first + i] : x[first + i];
      largest = magnitude > largest ? magnitude : largest;
    }
    const float inverse = largest > 0 ? 127 / largest : 0;
    int32_t sum = 0;
    for (int64_t i = 0; i < kGroup; ++i) {
      // Adding 1.5 · 2²³ rounds to the nearest integer.
      const float rounded = i < count ? (x[first + i] * inverse + 12582912.0f) - 12582912.0f : 0;
      q[first + i] = static_cast<int8_t>(rounded);
      sum += static_cast<int32_t>(rounded);
    }
    scales[g] = largest / 127;
    sums[g] = sum;
  }
}

}  // namespace
}  // namespace espalier
