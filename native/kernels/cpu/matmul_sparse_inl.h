// Products with bitmap and n:m bf16 weights, where an instruction set expands them fast enough to gain from them. The
// including file defines, before this header, what matmul_inl.h wants and
//   Vu expand(uint32_t mask, const uint16_t* values)   the kept values at their places, zeros elsewhere
#pragma once

#include <memory>

#include "kernels/cpu/matmul_inl.h"

namespace espalier {
namespace {

inline constexpr int kMaskPrefetch = 512;

struct SparseSource {
  static constexpr int kTiles = 2;
  const uint16_t* values;
  const uint32_t* masks;

  static SparseSource of(const PackedMatrix& weights, int64_t tile) {
    return {reinterpret_cast<const uint16_t*>(weights.elements(tile)), weights.masks(tile)};
  }
  template <int S>
  ESPALIER_INLINE Vu next(int i) {
    if (i == 0) prefetch(masks, kMaskPrefetch);
    prefetch(values, kPrefetch);
    const uint32_t mask = *masks++;
    const Vu v = expand(mask, values);
    values += __builtin_popcount(mask);
    return v;
  }
};

// A tile row expanded beforehand, whose every `of` is the same.
struct BufferedSource : DenseSource {
  static constexpr int kTiles = 1;
};

inline void sparse_bf16(const MatmulTask& task) {
  if (task.tokens <= kTokenBlock) return multiply_bf16<SparseSource>(task);
  // With many tokens a tile row is expanded once into a buffer that stays in cache.
  const int64_t vectors = task.weights.vectors();
  const auto buffer = std::make_unique_for_overwrite<uint16_t[]>(static_cast<size_t>(vectors * 32 + kPrefetch));
  for_each_run(task, kTokenBlock, 1, [&](const TileRun& run) {
    SparseSource source = SparseSource::of(task.weights, run.tile);
    for (int64_t v = 0; v < vectors; ++v) {
      store_to(buffer.get() + v * 32, source.next<1>(static_cast<int>(v % kBlockVectors)));
    }
    multiply_run<BufferedSource>(task, run, [&](int64_t) { return BufferedSource{buffer.get()}; });
  });
}

}  // namespace
}  // namespace espalier
