// Attention of rows that share a KV head to one chunk of its keys, and the sum over chunks. Compiled once for each
// instruction set.
//
// Keys and values stream through once, a block at a time, for all rows of a task; rows are taken in tiles whose sums
// fill the registers. One template serves the element types of the cache; int8 keys are scored by exact dot products of
// bytes. Every row sees the same operations in the same order whatever tile it is in: one multiply-add for
// each dimension of a score, one for each key of an output. So its bits depend neither on the other rows nor on how
// chunks are shared out.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/kv_block_inl.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

static_assert(kKvBlock == kVectorFloats, "the scores of a KV block are one vector");
static_assert(kKvChunk % kKvBlock == 0, "a chunk is whole blocks");

// Sums held in registers at once, of kVectorFloats each: half of the register file.
#if defined(__AVX512F__)
inline constexpr int kSums = 16;
#else
inline constexpr int kSums = 4;
#endif
inline constexpr int kTileMost = kSums < 8 ? kSums : 8;
inline constexpr int kScoreStride = kKvChunk + kKvBlock;  // not a power of two: rows lie in different cache sets
inline constexpr int kChunkBlocks = kKvChunk / kKvBlock;

// A query for int8 keys is (q₀ + q₁ / kFine) · scale, with q₀ and q₁ from −127 to 127.
inline constexpr float kFine = 254;
struct QueryParts {
  float scales[kTileMost];
  int32_t sums[2][kTileMost];  // Σ q₀, Σ q₁
};

// Blocks between what is read and what is prefetched: as many bytes whatever the type.
template <class Element>
inline constexpr int kAhead = 8 / static_cast<int>(sizeof(Element));

// Some rows of a task. Keys count from the start of the chunk.
struct RowTile {
  int rows;
  int first_lo, first_hi;  // lowest and highest first key of a row
  int last_lo, last_hi;
  const float* queries;  // [head_dim][rows]; for int8 keys int8_t [2][ceil(head_dim / 4)][rows][4]
  QueryParts parts;
  float* scores;  // [rows][kScoreStride]
  float* mixed;   // [rows][partial stride]

  bool sees_block(int block) const { return first_lo < (block + 1) * kKvBlock && last_hi > block * kKvBlock; }
};

// Calls body(integral_constant) with the number of rows of a tile.
template <int R = kTileMost, class Body>
ESPALIER_INLINE void with_rows(int rows, const Body& body) {
  if constexpr (R > 1) {
    if (rows < R) return with_rows<R / 2>(rows, body);
  }
  body(std::integral_constant<int, R>{});
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
        if (part == 0 && ahead != nullptr) __builtin_prefetch(ahead[b] + offset);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][b] = dot(acc[r][b], k, query + r * kDotBytes);
      }
    }
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
        if (ahead != nullptr) __builtin_prefetch(ahead[b] + offset);
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
        if (ahead != nullptr && d * kVectorFloats * kSize % 64 == 0) __builtin_prefetch(ahead + offset);
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

ESPALIER_INLINE int clamp_key(int64_t key) { return static_cast<int>(key < 0 ? 0 : (key > kKvChunk ? kKvChunk : key)); }

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

// Packs the queries and splits the rows into tiles; returns their number.
template <class Element>
int make_tiles(const AttendTask& task, RowTile* tiles) {
  float* queries = task.scratch;
  float* scores = task.scratch + kAttendRows * task.head_dim;
  const int64_t stride = attend_partial_floats(task.head_dim);
  const int64_t base = task.chunk * kKvChunk;
  int count = 0;
  for (int64_t row = 0; row < task.count; ++count) {
    int rows = kTileMost;
    while (rows > task.count - row) rows /= 2;
    RowTile& tile = tiles[count];
    tile = {.rows = rows,
            .first_lo = kKvChunk,
            .first_hi = 0,
            .last_lo = kKvChunk,
            .last_hi = 0,
            .queries = queries,
            .parts = {},
            .scores = scores,
            .mixed = task.partials + row * task.partial_stride};
    for (int r = 0; r < rows; ++r) {
      const AttendRow& source = task.rows[row + r];
      const int first = clamp_key(source.first - base);
      const int last = clamp_key(source.last - base);
      tile.first_lo = first < tile.first_lo ? first : tile.first_lo;
      tile.first_hi = first > tile.first_hi ? first : tile.first_hi;
      tile.last_lo = last < tile.last_lo ? last : tile.last_lo;
      tile.last_hi = last > tile.last_hi ? last : tile.last_hi;
      __builtin_memset(tile.mixed + r * task.partial_stride, 0, static_cast<size_t>(stride) * sizeof(float));
    }
    pack_queries<Element>(task.rows + row, task.head_dim, tile, queries);
    queries += static_cast<int64_t>(rows) * task.head_dim;
    scores += rows * kScoreStride;
    row += rows;
  }
  return count;
}

template <class Element>
void mix_tile(const AttendTask& task, const RowTile& tile, const AttendRow* rows, int block, const uint8_t* values,
              const uint8_t* ahead) {
  const auto inside = [&](int key) {
    const int k = key - block * kKvBlock;
    return k < 0 ? 0 : (k > kKvBlock ? kKvBlock : k);
  };
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

template <class Element>
void attend(const AttendTask& task) {
  RowTile tiles[kAttendRows];
  const int count = make_tiles<Element>(task, tiles);
  int first = kKvChunk;
  int last = 0;
  for (int t = 0; t < count; ++t) {
    first = tiles[t].first_lo < first ? tiles[t].first_lo : first;
    last = tiles[t].last_hi > last ? tiles[t].last_hi : last;
  }
  const int first_block = first / kKvBlock;
  const int last_block = (last + kKvBlock - 1) / kKvBlock;
  if (first_block >= last_block) return;
  const int blocks = last_block - first_block;
  const int32_t* table = task.blocks + task.chunk * kChunkBlocks + first_block;
  // Keys and values in the order in which they are read; behind them nothing is known.
  const uint8_t* stream[2 * kChunkBlocks + kAhead<Element>];
  for (int b = 0; b < blocks; ++b) {
    stream[b] = task.keys + table[b] * task.block_stride;
    stream[blocks + b] = task.values + table[b] * task.block_stride;
  }
  for (int b = 0; b < kAhead<Element>; ++b) stream[2 * blocks + b] = stream[2 * blocks - 1];
  const uint8_t* const* values = stream + blocks - first_block;

  for (int b = first_block; b < last_block;) {
    const bool pair = b + 1 < last_block;
    const uint8_t* const* keys = stream + b - first_block;
    for (int t = 0; t < count; ++t) {
      const RowTile& tile = tiles[t];
      if (!tile.sees_block(b) && !(pair && tile.sees_block(b + 1))) continue;
      const uint8_t* const* ahead = t == 0 ? keys + kAhead<Element> : nullptr;
      with_rows(tile.rows, [&](auto r) {
        constexpr int R = r;
        if constexpr (2 * R <= kSums) {
          if (pair) return score_blocks<Element, R, 2>(tile, keys, ahead, task.head_dim, task.scale, b);
        }
        score_blocks<Element, R, 1>(tile, keys, ahead, task.head_dim, task.scale, b);
        if (pair) {
          score_blocks<Element, R, 1>(tile, keys + 1, ahead == nullptr ? nullptr : ahead + 1, task.head_dim, task.scale,
                                      b + 1);
        }
      });
    }
    b += pair ? 2 : 1;
  }

  const int64_t base = task.chunk * kKvChunk;
  const int64_t width = attend_partial_floats(task.head_dim) - kKvBlock;
  [[maybe_unused]] const int64_t scales = kv_scales_offset(task.head_dim);
  const AttendRow* rows = task.rows;
  for (int t = 0; t < count; rows += tiles[t].rows, ++t) {
    for (int r = 0; r < tiles[t].rows; ++r) {
      const int row_first = clamp_key(rows[r].first - base);
      const int row_last = clamp_key(rows[r].last - base);
      if (row_first >= row_last) continue;
      float* partial = tiles[t].mixed + r * task.partial_stride + width;
      weigh(tiles[t].scores + r * kScoreStride, row_first, row_last, partial, partial + 1);
      if constexpr (std::is_same_v<Element, int8_t>) {
        for (int b = row_first / kKvBlock; b * kKvBlock < row_last; ++b) {
          float* weights = tiles[t].scores + r * kScoreStride + b * kKvBlock;
          store(weights, load(weights) * load(reinterpret_cast<const float*>(values[b] + scales)));
        }
      }
    }
  }

  for (int b = first_block; b < last_block; ++b) {
    rows = task.rows;
    for (int t = 0; t < count; rows += tiles[t].rows, ++t) {
      if (tiles[t].sees_block(b))
        mix_tile<Element>(task, tiles[t], rows, b, values[b], t == 0 ? values[b + kAhead<Element>] : nullptr);
    }
  }
}

void attend_combine(float* partials, int64_t stride, int64_t chunks, int head_dim, float* out) {
  const int64_t width = attend_partial_floats(head_dim) - kKvBlock;
  float maximum = partials[width];
  for (int64_t c = 1; c < chunks; ++c) {
    const float m = partials[c * stride + width];
    maximum = m > maximum ? m : maximum;
  }
  float total = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    float* partial = partials + c * stride + width;
    partial[0] = exp(broadcast(partial[0] - maximum))[0];
    total += partial[0] * partial[1];
  }
  const float scale = 1.0f / total;
  for (int64_t d = 0; d < head_dim; d += kVectorFloats) {
    Vf acc = {};
    for (int64_t c = 0; c < chunks; ++c) acc += load(partials + c * stride + d) * partials[c * stride + width];
    acc = acc * scale;
    if (d + kVectorFloats <= head_dim) {
      store(out + d, acc);
    } else {
      store_first(out + d, head_dim - d, acc);
    }
  }
}

}  // namespace
}  // namespace espalier
