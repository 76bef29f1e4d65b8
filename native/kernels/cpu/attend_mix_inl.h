// From scores to weights, and values mixed by them.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/attend_tile_inl.h"
#include "kernels/cpu/kv_block_inl.h"

namespace espalier {
namespace {

// Scores of one row to weights e^(score − maximum) in place, zero for keys that the row does not see.
void weigh(float* scores, int first, int last, float* maximum, float* total) {
  const int begin = first / kKvBlock * kKvBlock;
  const int end = (last + kKvBlock - 1) / kKvBlock * kKvBlock;
  for (int i = begin; i < first; ++i) scores[i] = -INFINITY;
  for (int i = last; i < end; ++i) scores[i] = -INFINITY;
  Vf highest = load(scores + begin);
  for (int i = begin + kKvBlock; i < end; i += kKvBlock) highest = max(highest, load(scores + i));
  *maximum = max_lane(highest);
  Vf sums = {};
  for (int i = begin; i < end; i += kKvBlock) {
    const Vf weights = exp(load(scores + i) - *maximum);
    store(scores + i, weights);
    sums += weights;
  }
  *total = sum(sums);
}

// mixed += Σ weight · value over keys [begin, end) of a block, vectors [vector, vectors) of each row. Lanes past
// head_dim hold what lies behind a value; they are never read.
template <class Element, int R, int D>
ESPALIER_INLINE void mix_block(const float* weights, const uint8_t* values, const uint8_t* ahead, int head_dim,
                               int begin, int end, float* mixed, int64_t stride, int vector) {
  constexpr auto kSize = static_cast<int64_t>(sizeof(Element));
  const int vectors = (head_dim + kVectorFloats - 1) / kVectorFloats;
  for (; vector + D <= vectors; vector += D) {
    const int64_t at = vector * kVectorFloats;
    Vf acc[R][D];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) acc[r][d] = load(mixed + r * stride + at + d * kVectorFloats);
    }
    for (int64_t p = begin; p < end; ++p) {
      Vf v[D];
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        const int64_t offset = (p * head_dim + at + d * kVectorFloats) * kSize;
        v[d] = load_kv(reinterpret_cast<const Element*>(values + offset));
        if (ahead != nullptr && d * kVectorFloats * kSize % 64 == 0) fetch(ahead + offset);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d) acc[r][d] += v[d] * weights[r * kScoreStride + p];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) store(mixed + r * stride + at + d * kVectorFloats, acc[r][d]);
    }
  }
  if constexpr (D > 1) {
    if (vector < vectors)
      mix_block<Element, R, D / 2>(weights, values, ahead, head_dim, begin, end, mixed, stride, vector);
  }
}

template <int R>
inline constexpr int kMixVectors = kSums / R < 8 ? kSums / R : 8;

template <class Element>
void mix_tile(const AttendTask& task, const RowTile& tile, const AttendRow* rows, int block, const uint8_t* values,
              const uint8_t* ahead) {
  const auto inside = [&](int key) {
    const int k = key - block * kKvBlock;
    return k < 0 ? 0 : (k > kKvBlock ? kKvBlock : k);
  };
  if (std::is_same_v<Element, int8_t> && ahead != nullptr) fetch(ahead + kv_scales_offset(task.head_dim));
  const float* weights = tile.scores + block * kKvBlock;
  const int begin = inside(tile.first_lo);
  const int end = inside(tile.last_lo);
  if (begin == inside(tile.first_hi) && end == inside(tile.last_hi)) {
    with_rows(tile.rows, [&](auto r) {
      constexpr int R = r;
      mix_block<Element, R, kMixVectors<R>>(weights, values, ahead, task.head_dim, begin, end, tile.mixed,
                                            task.partial_stride, 0);
    });
    return;
  }
  // A key that a row does not see may be stale or belong to its future: it must not even meet a weight of 0 (0 · NaN).
  const int64_t base = task.chunk * kKvChunk;
  for (int r = 0; r < tile.rows; ++r) {
    mix_block<Element, 1, kMixVectors<1>>(
        weights + r * kScoreStride, values, nullptr, task.head_dim, inside(clamp_key(rows[r].first - base)),
        inside(clamp_key(rows[r].last - base)), tile.mixed + r * task.partial_stride, task.partial_stride, 0);
  }
}

}  // namespace
}  // namespace espalier
