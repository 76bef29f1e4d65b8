// Tiles as registers that wgmma takes. Each operand has kRoom, the bytes of shared memory that a warp needs to load
// one.
#pragma once

#include "kernels/cuda/ptx/memory.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/warpgroup.cuh"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {

// Bytes of 16 rows of 32 inputs.
inline constexpr int kQuarterBytes = kTileHeight * 32 * 2;

// The operand of tiles of 2:4: registers as those of mma.sp m16n8k32, and positions of two times 32 inputs a word.
struct TwoFourValues {
  uint4 a[4];
  uint32_t positions[2];

  static constexpr int kRoom = 0;

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

// The operand of tiles that expand into all their values. Lane 4g + t has eight neighbouring inputs of its rows, and
// the tensor cores want of it the t-th pair of each eight: they go through shared memory, a quarter of a tile at a
// time.
template <class Tile>
struct ExpandedOperand {
  uint32_t a[kTileWidth / 16][4];

  static constexpr int kRoom = 2 * kQuarterBytes;

  __device__ __forceinline__ void load(Tile& tile, int lane, uint32_t room) {
    const uint32_t to = room + place(lane % 4, lane / 4);
    // Lane 8m + r addresses row r of the m-th matrix: rows from 0 or 8 on of an eight.
    const uint32_t from = room + lane / 8 % 2 * (kQuarterBytes / 2) + place(lane / 16, lane % 8);
    load_quarter<0>(tile, to, from);
    load_quarter<1>(tile, to, from);
    load_quarter<2>(tile, to, from);
    load_quarter<3>(tile, to, from);
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
  // Of 16 bytes of a row: 128 bytes an eight, turned around so that neither side meets itself in a bank.
  __device__ static int place(int eight, int row) { return eight * 128 + (row + 2 * eight) % 8 * 16; }

  // Two quarters have places of their own: the next one is laid down while this one is read.
  template <int kQuarter>
  __device__ __forceinline__ void load_quarter(Tile& tile, uint32_t to, uint32_t from) {
    uint32_t first[4];
    uint32_t second[4];
    tile.template expand<kQuarter, 0>(first);
    tile.template expand<kQuarter, 1>(second);
    constexpr int kPlace = kQuarter % 2 * kQuarterBytes;
    ptx::store_shared_16(to + kPlace, uint4{first[0], first[2], second[0], second[2]});
    ptx::store_shared_16(to + kPlace + kQuarterBytes / 2, uint4{first[1], first[3], second[1], second[3]});
    __syncwarp();
    const uint4 two = ptx::load_matrices(from + kPlace);
    // Two eights on, rows are turned around by four more.
    const uint4 other_two = ptx::load_matrices(((from + 256) ^ 64) + kPlace);
    put<kQuarter, 0>(two.x, two.y);
    put<kQuarter, 1>(two.z, two.w);
    put<kQuarter, 2>(other_two.x, other_two.y);
    put<kQuarter, 3>(other_two.z, other_two.w);
  }
  template <int kQuarter, int kLane>
  __device__ __forceinline__ void put(uint32_t upper, uint32_t lower) {
    constexpr int kEight = Tile::input(kQuarter, kLane) / 8;
    a[kEight / 2][kEight % 2 * 2] = upper;
    a[kEight / 2][kEight % 2 * 2 + 1] = lower;
  }
};

}  // namespace espalier::cuda
