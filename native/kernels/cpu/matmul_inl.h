// Products of a dense matrix with a few or many tokens; compiled once for each instruction set. The including file
// defines, before this header,
//   kTokenBlock   tokens whose accumulators fit the registers
//
// Decode reads each weight once and is bound by memory: what else goes through L1 costs as much as weights. A tile
// row's weights push the inputs out of it, so that few tokens meet several tile rows at a time, which share each load
// of an input; a block of tokens shares each load of a weight.
//
// The order of the sums is that of the matrix units (TDPBF16PS), so that every instruction set gives the same bits
// where the inputs are bf16 values: within a block of 32 inputs the even and the odd ones have a chain each, from zero;
// the two are added to each other, then to the output. Nothing else enters an output.
#pragma once

#include <cstdint>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

// Bytes ahead of the current load to prefetch: the best of 1, 1.5, 2 and 3 KB. What advances by less than a cache line
// is prefetched at each step, so that no line is left out.
inline constexpr int kPrefetch = 2048;
// Floats of x that a pass over the tile rows keeps in L2.
inline constexpr int64_t kCachedInputs = 128 * 1024;
// Vectors of a block of inputs.
inline constexpr int kBlockVectors = kBlockInputs / 2;

static_assert(kTileRows == kVectorFloats, "a tile row is one vector of accumulators");

ESPALIER_INLINE void prefetch(const void* at, int ahead) { __builtin_prefetch(static_cast<const char*>(at) + ahead); }

// Four whole lines of dense weights, of which S tile rows are read at once, into L2: the more streams, the shorter
// each.
template <int S>
ESPALIER_INLINE void prefetch_lines(const void* at) {
  constexpr int kAhead = S >= 4 ? 1280 : S >= 2 ? 2048 : 3072;
  for (int line = 0; line < 4; ++line) {
    __builtin_prefetch(static_cast<const char*>(at) + line * 64 + kAhead, 0, 2);
  }
}

// A source gives a tile row's vectors in order; i counts them within a block. `kTiles` of them, or fewer, are read at
// once: S.
struct DenseSource {
  static constexpr int kTiles = kTilesAtOnce;
  const uint16_t* values;

  static DenseSource of(const PackedMatrix& weights, int64_t tile) {
    return {reinterpret_cast<const uint16_t*>(weights.elements(tile))};
  }
  template <int S>
  ESPALIER_INLINE Vu next(int i) {
    if (i % 4 == 0) prefetch_lines<S>(values);
    const Vu v = load_from<Vu>(values);
    values += 32;
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

// T tokens against S tile rows; `rows` from the first of them on.
template <int T, int S, class Source>
ESPALIER_INLINE void multiply_tiles(Source (&sources)[S], int64_t vectors, int64_t rows, const float* x,
                                    int64_t x_stride, float* y, int64_t y_stride) {
  Vf total[T][S] = {};
  Vf even[T][S];
  Vf odd[T][S];
  const auto add = [&](int64_t v, int i) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const Vu weights = sources[s].template next<S>(i);
      const Vf low = as_floats(weights << 16);
      const Vf high = as_floats(weights & 0xffff0000u);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        even[t][s] += low * x[t * x_stride + 2 * v];
        odd[t][s] += high * x[t * x_stride + 2 * v + 1];
      }
    }
  };
  const auto each = [&](auto use) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) use(t, s);
    }
  };
  const auto clear = [&](int t, int s) __attribute__((always_inline)) { even[t][s] = odd[t][s] = Vf{}; };
  const auto collect = [&](int t, int s) __attribute__((always_inline)) { total[t][s] += even[t][s] + odd[t][s]; };
  int64_t v = 0;
  for (; v + kBlockVectors <= vectors; v += kBlockVectors) {
    each(clear);
#pragma GCC unroll 16
    for (int i = 0; i < kBlockVectors; ++i) add(v + i, i);
    each(collect);
  }
  if (v < vectors) {
    each(clear);
    for (int i = 0; v < vectors; ++v, ++i) add(v, i);
    each(collect);
  }
  each([&](int t, int s) __attribute__((always_inline)) {
    store_rows(y + t * y_stride + s * kTileRows, rows - s * kTileRows, total[t][s]);
  });
}

// Some neighbouring tile rows against some tokens.
struct TileRun {
  int64_t tile;
  int64_t tiles;
  int64_t rows;  // from the first of the tile rows to the end of the matrix
  int64_t first;
  int64_t tokens;
  float* y;  // of the first token and tile row

  // Without the first ones.
  TileRun past_tiles(int64_t count) const {
    return {tile + count, tiles - count, rows - count * kTileRows, first, tokens, y + count * kTileRows};
  }
  TileRun past_tokens(int64_t count, int64_t y_stride) const {
    return {tile, tiles, rows, first + count, tokens - count, y + count * y_stride};
  }
};

// Calls multiply.operator()<T, S>(run) for blocks of T tokens and S tile rows: as many tokens as there are, up to
// kTokens, and as many tile rows as leave their sums in registers, up to kTiles.
template <int kTokens, int kTiles>
struct RunBlocks {
  template <class Multiply>
  static void each(TileRun run, int64_t y_stride, const Multiply& multiply) {
    tokens<kTokens>(run, y_stride, multiply);
  }

 private:
  static constexpr int tiles_for(int tokens) { return tokens * kTiles <= kTokens ? kTiles : kTokens / tokens; }

  template <int T, class Multiply>
  static void tokens(TileRun run, int64_t y_stride, const Multiply& multiply) {
    for (; run.tokens >= T; run = run.past_tokens(T, y_stride)) tile_rows<T, tiles_for(T)>(run, multiply);
    if constexpr (T > 1) {
      if (run.tokens > 0) tokens<T / 2>(run, y_stride, multiply);
    }
  }
  template <int T, int S, class Multiply>
  static void tile_rows(TileRun run, const Multiply& multiply) {
    for (; run.tiles >= S; run = run.past_tiles(S)) multiply.template operator()<T, S>(run);
    if constexpr (S > 1) {
      if (run.tiles > 0) tile_rows<T, S / 2>(run, multiply);
    }
  }
};

// source(tile) begins a tile row.
template <class Source, class MakeSource>
void multiply_run(const MatmulTask& task, const TileRun& whole, const MakeSource& source) {
  RunBlocks<kTokenBlock, Source::kTiles>::each(whole, task.y_stride, [&]<int T, int S>(const TileRun& run) {
    Source sources[S];
    for (int s = 0; s < S; ++s) sources[s] = source(run.tile + s);
    multiply_tiles<T, S>(sources, task.weights.vectors(), run.rows, task.x + run.first * task.x_stride, task.x_stride,
                         run.y, task.y_stride);
  });
}

// Calls use(run) for runs of up to `tiles` tile rows and for chunks of tokens whose inputs stay in cache.
template <class Use>
void for_each_run(const MatmulTask& task, int block, int64_t tiles, Use&& use) {
  int64_t chunk = kCachedInputs / task.weights.cols() / block * block;
  if (chunk < block) chunk = block;
  for (int64_t first = 0; first < task.tokens; first += chunk) {
    const int64_t count = task.tokens - first < chunk ? task.tokens - first : chunk;
    for (int64_t tile = task.tile_begin; tile < task.tile_end; tile += tiles) {
      const int64_t left = task.tile_end - tile;
      use(TileRun{tile, left < tiles ? left : tiles, task.weights.rows() - tile * kTileRows, first, count,
                  task.y + first * task.y_stride + (tile - task.tile_begin) * kTileRows});
    }
  }
}

template <class Source>
void multiply_bf16(const MatmulTask& task) {
  for_each_run(task, kTokenBlock, Source::kTiles, [&](const TileRun& run) {
    multiply_run<Source>(task, run, [&](int64_t tile) { return Source::of(task.weights, tile); });
  });
}

inline void dense_bf16(const MatmulTask& task) { multiply_bf16<DenseSource>(task); }

template <int T>
ESPALIER_INLINE void multiply_tile_f32(const float* values, int64_t vectors, int64_t rows, const float* x,
                                       int64_t x_stride, float* y, int64_t y_stride) {
  Vf acc[T] = {};
  for (int64_t v = 0; v < vectors; ++v) {
    const Vf weights = load(values + v * kTileRows);
    prefetch(values + v * kTileRows, kPrefetch);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t] += weights * x[t * x_stride + v];
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) store_rows(y + t * y_stride, rows, acc[t]);
}

inline void dense_f32(const MatmulTask& task) {
  for_each_run(task, kTokenBlock, 1, [&](const TileRun& run) {
    const auto* values = reinterpret_cast<const float*>(task.weights.elements(run.tile));
    const float* x = task.x + run.first * task.x_stride;
    const int64_t vectors = task.weights.vectors();
    int64_t t = 0;
    for (; t + kTokenBlock <= run.tokens; t += kTokenBlock) {
      multiply_tile_f32<kTokenBlock>(values, vectors, run.rows, x + t * task.x_stride, task.x_stride,
                                     run.y + t * task.y_stride, task.y_stride);
    }
    for (; t < run.tokens; ++t) {
      multiply_tile_f32<1>(values, vectors, run.rows, x + t * task.x_stride, task.x_stride, run.y + t * task.y_stride,
                           task.y_stride);
    }
  });
}

}  // namespace
}  // namespace espalier
