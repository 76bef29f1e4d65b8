// Products of a packed matrix with a few or many tokens; compiled once for each instruction set. The including file
// defines, before this header,
//   kTokenBlock                        tokens whose accumulators fit the registers
//   Vu expand(uint32_t mask, const uint16_t* values)   the kept values at their places, zeros elsewhere
//
// Decode reads each weight once and is bound by memory; a block of tokens shares each load.
//
// The order of the sums is that of the matrix units (TDPBF16PS), so that every instruction set gives the same bits
// where the inputs are bf16 values: within a block of 32 inputs the even and the odd ones have a chain each, from zero;
// the two are added to each other, then to the output. Nothing else enters an output.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

// Bytes ahead of the current load to prefetch: the best of 1, 2, 4 and 8 KB. What advances by less than a cache line is
// prefetched at each step, so that no line is left out.
inline constexpr int kPrefetch = 2048;
// The same for whole lines of dense weights, which go into L2, four at a time: the best of 1, 2, 3 and 4 KB.
inline constexpr int kDensePrefetch = 3072;
// Floats of x that a pass over the tile rows keeps in L2.
inline constexpr int64_t kCachedInputs = 128 * 1024;
// Vectors of a block of inputs.
inline constexpr int kBlockVectors = kBlockInputs / 2;

static_assert(kTileRows == kVectorFloats, "a tile row is one vector of accumulators");

ESPALIER_INLINE void prefetch(const void* at) { __builtin_prefetch(static_cast<const char*>(at) + kPrefetch); }

// A source gives a tile row's vectors in order; i counts them within a block.
struct DenseSource {
  const uint16_t* values;

  static DenseSource of(const PackedMatrix& weights, int64_t tile) {
    return {reinterpret_cast<const uint16_t*>(weights.elements(tile))};
  }
  ESPALIER_INLINE Vu next(int i) {
    if (i % 4 == 0) {
      for (int line = 0; line < 4; ++line) {
        __builtin_prefetch(reinterpret_cast<const char*>(values + line * 32) + kDensePrefetch, 0, 2);
      }
    }
    const Vu v = load_from<Vu>(values);
    values += 32;
    return v;
  }
};

struct SparseSource {
  const uint16_t* values;
  const uint32_t* masks;

  static SparseSource of(const PackedMatrix& weights, int64_t tile) {
    return {reinterpret_cast<const uint16_t*>(weights.elements(tile)), weights.masks(tile)};
  }
  ESPALIER_INLINE Vu next(int i) {
    if (i == 0) prefetch(masks);
    prefetch(values);
    const uint32_t mask = *masks++;
    const Vu v = expand(mask, values);
    values += __builtin_popcount(mask);
    return v;
  }
};

ESPALIER_INLINE void store_rows(float* y, int64_t rows, Vf v) {
  if (rows >= kTileRows) {
    store(y, v);
  } else {
    store_first(y, rows, v);
  }
}

// T tokens against one tile row.
template <int T, class Source>
ESPALIER_INLINE void multiply_tile(Source source, int64_t vectors, int64_t rows, const float* x, int64_t x_stride,
                                   float* y, int64_t y_stride) {
  Vf total[T] = {};
  Vf even[T];
  Vf odd[T];
  const auto add = [&](int64_t v, int i) __attribute__((always_inline)) {
    const Vu weights = source.next(i);
    const Vf low = as_floats(weights << 16);
    const Vf high = as_floats(weights & 0xffff0000u);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      even[t] += low * x[t * x_stride + 2 * v];
      odd[t] += high * x[t * x_stride + 2 * v + 1];
    }
  };
  const auto clear = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) even[t] = odd[t] = Vf{};
  };
  const auto collect = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) total[t] += even[t] + odd[t];
  };
  int64_t v = 0;
  for (; v + kBlockVectors <= vectors; v += kBlockVectors) {
    clear();
#pragma GCC unroll 16
    for (int i = 0; i < kBlockVectors; ++i) add(v + i, i);
    collect();
  }
  if (v < vectors) {
    clear();
    for (int i = 0; v < vectors; ++v, ++i) add(v, i);
    collect();
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) store_rows(y + t * y_stride, rows, total[t]);
}

// Any number of tokens, in blocks of T, T/2, … 1.
template <int T, class Source>
void multiply_tokens(Source source, int64_t vectors, int64_t rows, const float* x, int64_t x_stride, int64_t tokens,
                     float* y, int64_t y_stride) {
  for (; tokens >= T; tokens -= T, x += T * x_stride, y += T * y_stride) {
    multiply_tile<T>(source, vectors, rows, x, x_stride, y, y_stride);
  }
  if constexpr (T > 1) {
    if (tokens > 0) multiply_tokens<T / 2>(source, vectors, rows, x, x_stride, tokens, y, y_stride);
  }
}

// Calls use(tile, rows, first token, tokens, y) for the tile rows and for chunks of tokens whose inputs stay in cache.
template <class Use>
void for_each_tile(const MatmulTask& task, int block, Use&& use) {
  int64_t chunk = kCachedInputs / task.weights.cols() / block * block;
  if (chunk < block) chunk = block;
  for (int64_t first = 0; first < task.tokens; first += chunk) {
    const int64_t count = task.tokens - first < chunk ? task.tokens - first : chunk;
    for (int64_t tile = task.tile_begin; tile < task.tile_end; ++tile) {
      use(tile, task.weights.rows() - tile * kTileRows, first, count,
          task.y + first * task.y_stride + (tile - task.tile_begin) * kTileRows);
    }
  }
}

inline void dense_bf16(const MatmulTask& task) {
  for_each_tile(task, kTokenBlock, [&](int64_t tile, int64_t rows, int64_t first, int64_t count, float* y) {
    multiply_tokens<kTokenBlock>(DenseSource::of(task.weights, tile), task.weights.vectors(), rows,
                                 task.x + first * task.x_stride, task.x_stride, count, y, task.y_stride);
  });
}

inline void sparse_bf16(const MatmulTask& task) {
  const int64_t vectors = task.weights.vectors();
  // With many tokens a tile row is expanded once into a buffer that stays in cache.
  std::unique_ptr<uint16_t[]> buffer;
  if (task.tokens > kTokenBlock) {
    buffer = std::make_unique_for_overwrite<uint16_t[]>(static_cast<size_t>(vectors * 32 + kPrefetch));
  }
  for_each_tile(task, kTokenBlock, [&](int64_t tile, int64_t rows, int64_t first, int64_t count, float* y) {
    const float* x = task.x + first * task.x_stride;
    SparseSource source = SparseSource::of(task.weights, tile);
    if (buffer == nullptr) {
      multiply_tokens<kTokenBlock>(source, vectors, rows, x, task.x_stride, count, y, task.y_stride);
      return;
    }
    for (int64_t v = 0; v < vectors; ++v) {
      const Vu expanded = source.next(static_cast<int>(v % kBlockVectors));
      store_to(buffer.get() + v * 32, expanded);
    }
    multiply_tokens<kTokenBlock>(DenseSource{buffer.get()}, vectors, rows, x, task.x_stride, count, y, task.y_stride);
  });
}

template <int T>
ESPALIER_INLINE void multiply_tile_f32(const float* values, int64_t vectors, int64_t rows, const float* x,
                                       int64_t x_stride, float* y, int64_t y_stride) {
  Vf acc[T] = {};
  for (int64_t v = 0; v < vectors; ++v) {
    const Vf weights = load(values + v * kTileRows);
    prefetch(values + v * kTileRows);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t] += weights * x[t * x_stride + v];
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) store_rows(y + t * y_stride, rows, acc[t]);
}

inline void dense_f32(const MatmulTask& task) {
  for_each_tile(task, kTokenBlock, [&](int64_t tile, int64_t rows, int64_t first, int64_t count, float* y) {
    const auto* values = reinterpret_cast<const float*>(task.weights.elements(tile));
    const float* x = task.x + first * task.x_stride;
    const int64_t vectors = task.weights.vectors();
    int64_t t = 0;
    for (; t + kTokenBlock <= count; t += kTokenBlock) {
      multiply_tile_f32<kTokenBlock>(values, vectors, rows, x + t * task.x_stride, task.x_stride, y + t * task.y_stride,
                                     task.y_stride);
    }
    for (; t < count; ++t) {
      multiply_tile_f32<1>(values, vectors, rows, x + t * task.x_stride, task.x_stride, y + t * task.y_stride,
                           task.y_stride);
    }
  });
}

}  // namespace
}  // namespace espalier
