// The end of an item of a product of many tokens whose inputs the blocks of a cluster have split: each lays its sums
// where x was in its shared memory, and adds up a share of the tokens from there and from the other blocks'.
#pragma once

#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/memory.cuh"
#include "kernels/cuda/wide_store.cuh"

namespace espalier::cuda {

// Adds up eights of tokens of which each block of a cluster has a part at `place` of its shared memory, 16 bytes a
// thread, and those of the next eight kStep bytes on: first its own, then those of the blocks after it. kLeast and
// kMost are bounds of `split`.
template <int kLeast, int kMost, int kStep, int kSums>
__device__ __forceinline__ void sum_parts(int split, uint32_t rank, uint32_t place, int eights, float (&sums)[kSums]) {
  constexpr int kEights = (kSums / 4 + kLeast - 1) / kLeast;
  // Eights whose loads are under way together: with those of all other blocks, four to seven loads.
  constexpr int kAtOnce = kMostSplit / kMost;
  uint32_t there[kMost];
#pragma unroll
  for (int i = 1; i < kMost; ++i) {
    const int block = static_cast<int>(rank) + (i < split ? i : 0);
    there[i] = ptx::address_in(place, block < split ? block : block - split);
  }
#pragma unroll
  for (int first = 0; first < kEights; first += kAtOnce) {
    if (first >= eights) break;
    float4 parts[kAtOnce][kMost];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
      for (int i = 1; i < kMost; ++i) {
        parts[j][i] = ptx::load_cluster_16(there[i] + (first + j) * kStep, i < split && first + j < eights);
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce && first + j < kEights; ++j) {
      float4 sum = ptx::load_shared_floats(place + (first + j) * kStep);
#pragma unroll
      for (int i = 1; i < kMost; ++i) {
        sum.x += parts[j][i].x;
        sum.y += parts[j][i].y;
        sum.z += parts[j][i].z;
        sum.w += parts[j][i].w;
      }
      const int at = 4 * (first + j);
      sums[at] = sum.x;
      sums[at + 1] = sum.y;
      sums[at + 2] = sum.z;
      sums[at + 3] = sum.w;
    }
  }
}

// Adds up what the blocks of a cluster have of the same rows and tokens. Each ends with some eights, which come to the
// front of its sums.
template <int kTokens>
__device__ __forceinline__ Eights add_parts(int split, const WideRings& rings, uint32_t rank, int warp, int lane,
                                            float (&sums)[kTokens / 2]) {
  // All blocks of x have been read: their place is free for the sums.
  const uint32_t place = rings.x + (warp * 32 + lane) * 16;
  constexpr int kStep = kWideConsumers * 32 * 16;
  ptx::named_barrier(1, kWideConsumers * 32);
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    ptx::store_shared_16(place + j * kStep, float4{sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]});
  }
  ptx::cluster_barrier();
  const int each = (kTokens / 8 + split - 1) / split;
  Eights mine;
  mine.first = min(static_cast<int>(rank) * each, kTokens / 8);
  mine.count = min(each, kTokens / 8 - mine.first);
  const uint32_t first = place + mine.first * kStep;
  if (split == 2) {
    sum_parts<2, 2, kStep>(split, rank, first, mine.count, sums);
  } else {
    sum_parts<3, kMostSplit, kStep>(split, rank, first, mine.count, sums);
  }
  return mine;
}

// What a warp does with the sums of an item that do not go out through shared memory.
template <int kTokens>
__device__ __forceinline__ void store_item(const WideArgs& args, const WideRings& rings, const WideWalk& walk,
                                           uint32_t rank, int warp, int lane, float (&sums)[kTokens / 2]) {
  Eights eights{0, kTokens / 8};
  if (walk.split > 1) eights = add_parts<kTokens>(walk.split, rings, rank, warp, lane, sums);
  WideStore<kTokens>(args, walk, eights, walk.row_tile + warp, lane).store(sums);
}

}  // namespace espalier::cuda
