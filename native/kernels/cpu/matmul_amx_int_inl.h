// Products of many tokens with int8 and int4 weights on the matrix unit: a group of 64 inputs is one product of tiles,
// exact in integers as the dot products of vectors are, and its scales are applied in the same order. So every bit is
// that of the vector kernels.
#pragma once

#include <algorithm>

#include "core/aligned.h"
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/matmul_sparse_int_inl.h"

namespace espalier {
namespace {

// Tokens from which tiles are faster than vectors.
inline constexpr int64_t kIntTileTokens = 12;
// Bytes of activations that a pass over the tile rows keeps in L2.
inline constexpr int64_t kCachedBytes = 1024 * 1024;

// Up to 16 tokens against one tile row of signed bytes.
ESPALIER_INLINE void multiply_tile_amx(const uint8_t* weights, const uint16_t* scales, float factor,
                                       const QuantisedRows& x, int64_t first, int64_t count, int64_t rows, float* y,
                                       int64_t y_stride) {
  alignas(64) int32_t products[2][16 * kTileRows];
  Vf total[16] = {};
  const int8_t* q = x.q + first * x.groups * kGroup;
  const float* x_scales = x.scales + first * x.groups;
  for (int64_t g = 0; g < x.groups; ++g) {
    int32_t* product = products[g % 2];
    tile_zero<0>();
    tile_load<1>(q + g * kGroup, x.groups * kGroup);
    tile_load<2>(weights + g * kTileBytes, 64);
    tile_dot_int8<0, 1, 2>();
    tile_store<0>(product, 64);
    const Vf scale = load_f16(scales + g * kTileRows) * factor;
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) {
      total[t] += to_floats(load_from<Vi>(product + t * kTileRows)) * (scale * x_scales[t * x.groups + g]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) {
    if (t < count) store_rows(y + t * y_stride, rows, total[t]);
  }
}

template <class Source>
void multiply_int_amx(const MatmulTask& task) {
  const TileUnit unit;
  const QuantisedRows& x = *task.quantised;
  const int64_t vectors = task.weights.vectors();
  thread_local AlignedBuffer<uint8_t> bytes;
  bytes.ensure(static_cast<size_t>(vectors * 64));
  const int64_t chunk = std::max<int64_t>(16, kCachedBytes / (x.groups * kGroup) / 16 * 16);
  for (int64_t first = 0; first < task.tokens; first += chunk) {
    const int64_t end = std::min(task.tokens, first + chunk);
    for (int64_t tile = task.tile_begin; tile < task.tile_end; ++tile) {
      Source source = Source::of(task.weights, tile);
      for (int64_t v = 0; v < vectors; v += 2) {
        Vu pair[2];
        source.template next<1>(pair[0], pair[1], static_cast<int>(v / 2 % kPairs));
        for (int i = 0; i < 2; ++i) store_to(bytes.data() + (v + i) * 64, pair[i] ^ 0x80808080u);
      }
      float* y = task.y + (tile - task.tile_begin) * kTileRows;
      for (int64_t t = first; t < end; t += 16) {
        multiply_tile_amx(bytes.data(), task.weights.scales(tile), Source::kFactor, x, t,
                          std::min<int64_t>(16, end - t), task.weights.rows() - tile * kTileRows, y + t * task.y_stride,
                          task.y_stride);
      }
    }
  }
}

void tiled_dense_int8(const MatmulTask& task) {
  if (task.tokens < kIntTileTokens) return multiply_by_vectors(task);
  multiply_int_amx<DenseInt8>(task);
}

void tiled_dense_int4(const MatmulTask& task) {
  if (task.tokens < kIntTileTokens) return multiply_by_vectors(task);
  multiply_int_amx<DenseInt4>(task);
}

void tiled_sparse_int8(const MatmulTask& task) {
  if (task.tokens < kIntTileTokens) return multiply_by_vectors(task);
  multiply_int_amx<SparseInt8>(task);
}

void tiled_sparse_int4(const MatmulTask& task) {
  if (task.tokens < kIntTileTokens) return multiply_by_vectors(task);
  multiply_int_amx<SparseInt4>(task);
}

}  // namespace
}  // namespace espalier
