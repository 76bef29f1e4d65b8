// Tiles as registers that wgmma takes.
#pragma once

#include "kernels/cuda/ptx/warpgroup.cuh"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {

// Four lanes with four words each: lane t has row t, and gets column t.
__device__ __forceinline__ uint4 transpose(uint4 r, int t) {
  const bool odd = (t & 1) != 0;
  uint32_t s0 = __shfl_xor_sync(~0u, odd ? r.x : r.y, 1);
  uint32_t s1 = __shfl_xor_sync(~0u, odd ? r.z : r.w, 1);
  r = odd ? uint4{s0, r.y, s1, r.w} : uint4{r.x, s0, r.z, s1};
  const bool high = (t & 2) != 0;
  s0 = __shfl_xor_sync(~0u, high ? r.x : r.z, 2);
  s1 = __shfl_xor_sync(~0u, high ? r.y : r.w, 2);
  return high ? uint4{s0, s1, r.z, r.w} : uint4{r.x, r.y, s0, s1};
}

// The operand of tiles of 2:4: registers as those of mma.sp m16n8k32, and positions of two times 32 inputs a word.
struct TwoFourValues {
  uint4 a[4];
  uint32_t positions[2];

  template <int kHalf, int kTokens>
  __device__ __forceinline__ void multiply(float (&sums)[kTokens / 2], uint64_t x) {
#pragma unroll
    for (int u = 2 * kHalf; u < 2 * kHalf + 2; ++u) {
      ptx::settle(a[u].x);
      ptx::settle(a[u].y);
      ptx::settle(a[u].z);
      ptx::settle(a[u].w);
    }
    ptx::settle(positions[kHalf]);
    ptx::warpgroup_fence();
    ptx::warpgroup_sparse_product<kTokens, 0>(sums, a[2 * kHalf], positions[kHalf], x);
    ptx::warpgroup_sparse_product<kTokens, 1>(sums, a[2 * kHalf + 1], positions[kHalf], x + 4);
  }
};

// The operand of tiles that expand into all their values.
template <class Tile>
struct ExpandedOperand {
  uint32_t a[kTileWidth / 16][4];

  __device__ __forceinline__ void load(Tile& tile, int t) {
    load_quarter<0>(tile, t);
    load_quarter<1>(tile, t);
    load_quarter<2>(tile, t);
    load_quarter<3>(tile, t);
  }

  template <int kHalf, int kTokens>
  __device__ __forceinline__ void multiply(float (&sums)[kTokens / 2], uint64_t x) {
#pragma unroll
    for (int i = kHalf * 4; i < kHalf * 4 + 4; ++i) {
#pragma unroll
      for (uint32_t& word : a[i]) ptx::settle(word);
    }
    ptx::warpgroup_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) ptx::warpgroup_product<kTokens>(sums, a[kHalf * 4 + i], x + 2 * i);
  }

 private:
  // Lane t has 8 neighbouring inputs of its rows, and the tensor cores want of it two of each 8.
  template <int kQuarter>
  __device__ __forceinline__ void load_quarter(Tile& tile, int t) {
    uint32_t first[4];
    uint32_t second[4];
    tile.template expand<kQuarter, 0>(first);
    tile.template expand<kQuarter, 1>(second);
    const uint4 upper = transpose({first[0], first[2], second[0], second[2]}, t);
    const uint4 lower = transpose({first[1], first[3], second[1], second[3]}, t);
    place<kQuarter, 0>(upper.x, lower.x);
    place<kQuarter, 1>(upper.y, lower.y);
    place<kQuarter, 2>(upper.z, lower.z);
    place<kQuarter, 3>(upper.w, lower.w);
  }
  template <int kQuarter, int kLane>
  __device__ __forceinline__ void place(uint32_t upper, uint32_t lower) {
    constexpr int kEight = Tile::input(kQuarter, kLane) / 8;
    a[kEight / 2][kEight % 2 * 2] = upper;
    a[kEight / 2][kEight % 2 * 2 + 1] = lower;
  }
};

}  // namespace espalier::cuda
