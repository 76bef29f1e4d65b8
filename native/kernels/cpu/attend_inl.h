// Attention of rows that share a KV head to one chunk of its keys, and the sum over chunks. Compiled once for each
// instruction set.
//
// Keys and values stream through once, a block at a time, for all rows of a task; rows are taken in tiles whose sums
// fill the registers. One template serves the element types of the cache; int8 keys are scored by exact dot products of
// bytes. Every row sees the same operations in the same order whatever tile it is in: one multiply-add for
// each dimension of a score, one for each key of an output. So its bits depend neither on the other rows nor on how
// chunks are shared out.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cpu/attend_mix_inl.h"
#include "kernels/cpu/attend_score_inl.h"

namespace espalier {
namespace {

// Blocks of a chunk of which some row sees keys.
struct SeenBlocks {
  int first;
  int last;

  static SeenBlocks of(const AttendTask& task) {
    int first = kKvChunk;
    int last = 0;
    for (int64_t r = 0; r < task.count; ++r) {
      const int row_first = clamp_key(task.rows[r].first - task.chunk * kKvChunk);
      const int row_last = clamp_key(task.rows[r].last - task.chunk * kKvChunk);
      first = row_first < first ? row_first : first;
      last = row_last > last ? row_last : last;
    }
    return {first / kKvBlock, (last + kKvBlock - 1) / kKvBlock};
  }
};

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
void attend(const AttendTask& task) {
  RowTile tiles[kAttendRows];
  const int count = make_tiles<Element>(task, tiles);
  const auto [first_block, last_block] = SeenBlocks::of(task);
  if (first_block >= last_block) return;
  const int blocks = last_block - first_block;
  // What is read now and what will be: keys, values, the next task's keys. While a block of one is read, one of the
  // next is fetched, so that memory is as busy during the values, which take longer to mix, as during the keys.
  const uint8_t* stream[3 * kChunkBlocks];
  const int32_t* table = task.blocks + task.chunk * kChunkBlocks;
  for (int b = 0; b < blocks; ++b) {
    stream[b] = task.keys + table[first_block + b] * task.block_stride;
    stream[blocks + b] = task.values + table[first_block + b] * task.block_stride;
    stream[2 * blocks + b] = stream[blocks + b];
  }
  if (task.next != nullptr) {
    const AttendTask& next = *task.next;
    const auto [next_first, next_last] = SeenBlocks::of(next);
    table = next.blocks + next.chunk * kChunkBlocks;
    for (int b = 0; b < blocks && next_first + b < next_last; ++b) {
      stream[2 * blocks + b] = next.keys + table[next_first + b] * next.block_stride;
    }
  }
  const uint8_t* const* values = stream + blocks - first_block;

  for (int b = first_block; b < last_block;) {
    const bool pair = b + 1 < last_block;
    const uint8_t* const* keys = stream + b - first_block;
    for (int t = 0; t < count; ++t) {
      const RowTile& tile = tiles[t];
      if (!tile.sees_block(b) && !(pair && tile.sees_block(b + 1))) continue;
      const uint8_t* const* ahead = t == 0 ? keys + blocks : nullptr;
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
        mix_tile<Element>(task, tiles[t], rows, b, values[b], t == 0 ? values[b + blocks] : nullptr);
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
