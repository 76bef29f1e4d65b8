// Scores of a tile of rows: queries laid out for it, and their products with the keys of one or two blocks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cpu/attend_tile_inl.h"
#include "kernels/cpu/kv_block_inl.h"

namespace espalier {
namespace {

// Lays the queries of a tile out for score_blocks; `sources` are its rows.
template <class Element>
void pack_queries(const AttendRow* sources, int head_dim, RowTile& tile, float* out) {
  if constexpr (std::is_same_v<Element, int8_t>) {
    const int64_t steps = (head_dim + kDotBytes - 1) / kDotBytes;
    auto* packed = reinterpret_cast<int8_t*>(out);
    for (int r = 0; r < tile.rows; ++r) {
      const float* query = sources[r].query;
      const float scale = int8_scale(query, head_dim);
      const float inverse = inverse_of(scale);
      tile.parts.scales[r] = scale;
      // Whole numbers below 2²⁴: exact.
      Vf sums[2] = {};
      for (int64_t d = 0; d < head_dim; d += kVectorFloats) {
        const Vf x = (d + kVectorFloats <= head_dim ? load(query + d) : load_first(query + d, head_dim - d)) * inverse;
        const Vf coarse = (x + kRounder) - kRounder;
        const Vf fine = (x - coarse) * kFine;
        sums[0] += coarse;
        sums[1] += (fine + kRounder) - kRounder;
        int8_t bytes[2][kVectorFloats];
        store_rounded(bytes[0], coarse);
        store_rounded(bytes[1], fine);
        for (int part = 0; part < 2; ++part) {
          int8_t* out_part = packed + ((part * steps + d / kDotBytes) * tile.rows + r) * kDotBytes;
          const int64_t count = steps - d / kDotBytes;
          for (int64_t i = 0; i < kVectorFloats / kDotBytes && i < count; ++i) {
            __builtin_memcpy(out_part + i * tile.rows * kDotBytes, bytes[part] + i * kDotBytes, kDotBytes);
          }
        }
      }
      for (int part = 0; part < 2; ++part) {
        tile.parts.sums[part][r] = inverse > 0 ? static_cast<int32_t>(sum(sums[part])) : 0;
      }
    }
  } else {
    for (int r = 0; r < tile.rows; ++r) {
      for (int64_t d = 0; d < head_dim; ++d) out[d * tile.rows + r] = sources[r].query[d];
    }
  }
}

// Scores of B blocks of int8 keys; see score_blocks. The second pass over the keys finds them in the first cache.
template <int R, int B>
ESPALIER_INLINE void score_int8_blocks(const RowTile& tile, const uint8_t* const* keys, const uint8_t* const* ahead,
                                       int head_dim, float scale, int block) {
  const int64_t steps = (head_dim + kDotBytes - 1) / kDotBytes;
  const auto* query = reinterpret_cast<const int8_t*>(tile.queries);
  Vf coarse[R][B];
  for (int part = 0; part < 2; ++part) {
    Vi acc[R][B];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) acc[r][b] = start(tile.parts.sums[part][r]);
    }
    for (int64_t step = 0; step < steps; ++step, query += R * kDotBytes) {
      const int64_t offset = step * kKvBlock * kDotBytes;
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) {
        const Vu k = load_from<Vu>(keys[b] + offset);
        if (part == 0 && ahead != nullptr) fetch(ahead[b] + offset);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][b] = dot(acc[r][b], k, query + r * kDotBytes);
      }
    }
    for (int b = 0; part == 0 && ahead != nullptr && b < B; ++b) fetch(ahead[b] + kv_scales_offset(head_dim));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) {
        if (part == 0) {
          coarse[r][b] = to_floats(acc[r][b]);
          continue;
        }
        const auto* scales = reinterpret_cast<const float*>(keys[b] + kv_scales_offset(head_dim));
        const Vf sums = coarse[r][b] * kFine + to_floats(acc[r][b]);
        store(tile.scores + r * kScoreStride + (block + b) * kKvBlock,
              sums * (tile.parts.scales[r] * (scale / kFine)) * load(scales));
      }
    }
  }
}

// Scores of B blocks: keys lie [head_dim][kKvBlock], so one multiply-add serves 16 keys and nothing is summed across
// lanes. `ahead` is what will be read next, or nullptr.
template <class Element, int R, int B>
ESPALIER_INLINE void score_blocks(const RowTile& tile, const uint8_t* const* keys, const uint8_t* const* ahead,
                                  int head_dim, float scale, int block) {
  if constexpr (std::is_same_v<Element, int8_t>) {
    score_int8_blocks<R, B>(tile, keys, ahead, head_dim, scale, block);
    return;
  } else {
    Vf acc[R][B] = {};
    const float* query = tile.queries;
    for (int64_t d = 0; d < head_dim; ++d, query += R) {
      Vf k[B];
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) {
        const int64_t offset = d * kKvBlock * static_cast<int64_t>(sizeof(Element));
        k[b] = load_kv(reinterpret_cast<const Element*>(keys[b] + offset));
        if (ahead != nullptr) fetch(ahead[b] + offset);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int b = 0; b < B; ++b) acc[r][b] += k[b] * query[r];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) store(tile.scores + r * kScoreStride + (block + b) * kKvBlock, acc[r][b] * scale);
    }
  }
}

}  // namespace
}  // namespace espalier
