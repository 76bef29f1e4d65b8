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

#include <memory>
#include <type_traits>

#include "kernels/cpu/matmul_inl.h"

namespace espalier {
namespace {

inline constexpr int kPairs = kGroup / 8;  // pairs of vectors in a group
// The scales of S tile rows are prefetched so many bytes ahead, a line every two groups.
template <int S>
inline constexpr int kScalePrefetch = S >= 4 ? 256 : 512;

// Sources give the next two vectors as bytes q + 128 (int8) or 16 q + 128 (int4); `pair` counts within a group. The
// loop takes `kRunGroups` of them at a time, so that which of them it is in is known to the compiler, and up to
// `kTiles` tile rows at once.
struct DenseInt8 {
  static constexpr int kTiles = 2;
  static constexpr float kFactor = 1;
  static constexpr int64_t kRunGroups = 1;
  const uint8_t* bytes;

  static DenseInt8 of(const PackedMatrix& weights, int64_t tile) { return {weights.elements(tile)}; }
  template <int S>
  ESPALIER_INLINE void next(Vu& a, Vu& b, int pair) {
    if (pair % 2 == 0) prefetch_lines<S>(bytes);
    a = load_from<Vu>(bytes);
    b = load_from<Vu>(bytes + 64);
    bytes += 128;
  }
};

// A tile row expanded to bytes beforehand.
struct BufferedInt8 : DenseInt8 {
  static constexpr int kTiles = 1;
};
struct BufferedInt4 : BufferedInt8 {
  static constexpr float kFactor = 1.0f / 16;
};

ESPALIER_INLINE Vu high_nibbles(Vu v) { return v & 0xf0f0f0f0u; }
ESPALIER_INLINE Vu low_nibbles(Vu v) { return (v << 4) & 0xf0f0f0f0u; }

struct DenseInt4 {
  static constexpr int kTiles = kTilesAtOnce;
  static constexpr float kFactor = 1.0f / 16;
  static constexpr int64_t kRunGroups = 1;
  const uint8_t* bytes;

  static DenseInt4 of(const PackedMatrix& weights, int64_t tile) { return {weights.elements(tile)}; }
  template <int S>
  ESPALIER_INLINE void next(Vu& a, Vu& b, int pair) {
    if (pair % 4 == 0) prefetch_lines<S>(bytes);
    const Vu v = load_from<Vu>(bytes);
    bytes += 64;
    a = high_nibbles(v);
    b = low_nibbles(v);
  }
};

// T tokens against S tile rows; `rows` from the first of them on.
template <int T, int S, class Source>
ESPALIER_INLINE void multiply_tiles_int(Source (&sources)[S], const uint16_t* const (&scales)[S], int64_t rows,
                                        const QuantisedRows& x, int64_t first, float* y, int64_t y_stride) {
  // One token alone would wait for each dot: its sum runs in several chains.
  constexpr int kChains = T * S == 1 ? 4 : T * S == 2 ? 2 : 1;
  Vf total[T][S] = {};
  const auto add_group = [&](int64_t g) __attribute__((always_inline)) {
    Vi sums[T][S][kChains];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        sums[t][s][0] = start(x.sums[(first + t) * x.groups + g]);
#pragma GCC unroll 4
        for (int c = 1; c < kChains; ++c) sums[t][s][c] = Vi{};
      }
    }
    const int8_t* q = x.q + (first * x.groups + g) * kGroup;
#pragma GCC unroll 8
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        Vu a;
        Vu b;
        sources[s].template next<S>(a, b, pair);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
          const int8_t* at = q + t * x.groups * kGroup + pair * 8;
          sums[t][s][(2 * pair) % kChains] = dot(sums[t][s][(2 * pair) % kChains], a, at);
          sums[t][s][(2 * pair + 1) % kChains] = dot(sums[t][s][(2 * pair + 1) % kChains], b, at + 4);
        }
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const uint16_t* of_group = scales[s] + g * kTileRows;
      if (g % 2 == 0) prefetch(of_group, kScalePrefetch<S>);
      const Vf scale = load_f16(of_group);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        Vi sum = sums[t][s][0];
#pragma GCC unroll 4
        for (int c = 1; c < kChains; ++c) sum += sums[t][s][c];
        total[t][s] += to_floats(sum) * (scale * (x.scales[(first + t) * x.groups + g] * Source::kFactor));
      }
    }
  };
  int64_t group = 0;
  for (; group + Source::kRunGroups <= x.groups; group += Source::kRunGroups) {
#pragma GCC unroll 2
    for (int64_t i = 0; i < Source::kRunGroups; ++i) add_group(group + i);
  }
  if (group < x.groups) add_group(group);
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) store_rows(y + t * y_stride + s * kTileRows, rows - s * kTileRows, total[t][s]);
  }
}

// source(tile) begins a tile row.
template <class Source, class MakeSource>
void multiply_run_int(const MatmulTask& task, const TileRun& whole, const MakeSource& source) {
  RunBlocks<kIntTokenBlock, Source::kTiles>::each(whole, task.y_stride, [&]<int T, int S>(const TileRun& run) {
    Source sources[S];
    const uint16_t* scales[S];
    for (int s = 0; s < S; ++s) {
      sources[s] = source(run.tile + s);
      scales[s] = task.weights.scales(run.tile + s);
    }
    multiply_tiles_int<T, S>(sources, scales, run.rows, *task.quantised, run.first, run.y, task.y_stride);
  });
}

// With many tokens the source of a tile row is run once into a buffer of bytes, which `Buffered` reads.
template <class Source, class Buffered>
void multiply_int(const MatmulTask& task) {
  if (std::is_same_v<Source, DenseInt8> || task.tokens <= kIntTokenBlock) {
    for_each_run(task, kIntTokenBlock, Source::kTiles, [&](const TileRun& run) {
      multiply_run_int<Source>(task, run, [&](int64_t tile) { return Source::of(task.weights, tile); });
    });
    return;
  }
  const int64_t vectors = task.weights.vectors();
  const auto buffer = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(vectors * 64 + 2 * kPrefetch));
  for_each_run(task, kIntTokenBlock, 1, [&](const TileRun& run) {
    Source source = Source::of(task.weights, run.tile);
    for (int64_t v = 0; v < vectors; v += 2) {
      Vu pair[2];
      source.template next<1>(pair[0], pair[1], static_cast<int>(v / 2 % kPairs));
      store_to(buffer.get() + v * 64, pair[0]);
      store_to(buffer.get() + v * 64 + 64, pair[1]);
    }
    multiply_run_int<Buffered>(task, run, [&](int64_t) {
      Buffered at;
      at.bytes = buffer.get();
      return at;
    });
  });
}

inline void dense_int8(const MatmulTask& task) { multiply_int<DenseInt8, BufferedInt8>(task); }

inline void dense_int4(const MatmulTask& task) { multiply_int<DenseInt4, BufferedInt4>(task); }

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
