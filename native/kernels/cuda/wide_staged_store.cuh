// Sums that go out as bf16 through shared memory: while they were stored from registers no tensor core worked. Each
// warp turns its part and lays it down, one thread of each warpgroup has the copy engine take it from there, and the
// next item begins. As bf16 they are as large as two blocks of x, and lie where an item's last two were: those are let
// go only when they have been taken.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/ptx/tensor_store.cuh"
#include "kernels/cuda/wide_walk.cuh"

namespace espalier::cuda {

// Blocks of x whose place the sums take.
inline constexpr int kStagedBlocks = 2;

template <int kTokens>
class StagedStore {
 public:
  __device__ StagedStore(int warp, int lane) : warp_(warp), lane_(lane) {}

  // Starts to store what the two warpgroups have, at `x` and the block after it, of which all products are done.
  __device__ __forceinline__ void start(const WideArgs& args, const WideRings& rings, const WideWalk& walk, WidePlace x,
                                        const float (&sums)[kTokens / 2]) const {
    constexpr int kHalf = kTokens / kStagedBlocks;
    const int warpgroup = warp_ / 4;
    // Rows of 128 bytes, a token's 64 rows, swizzled: eight tokens' parts of a warp are in eight different banks.
    const int part = warp_ % 4 * 2 + lane_ / 8 % 2;
    const uint32_t place = (lane_ / 16 * 8 + lane_ % 8) * kRowBytes + (part ^ lane_ % 8) * 16;
    ptx::named_barrier(1, kWideConsumers * 32);
#pragma unroll
    for (int half = 0; half < kStagedBlocks; ++half, x.next(args.x_stages)) {
      const uint32_t from = rings.x + x.stage * kWideXBytes<kTokens> + warpgroup * kHalf * kRowBytes;
#pragma unroll
      for (int eight = 0; eight < kHalf / 8; eight += 2) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int sum = (half * kHalf / 8 + eight) * 4 + 2 * i;
          words[i] = pair(sums[sum], sums[sum + 1]);
        }
        ptx::store_matrices_turned(from + place + eight * 8 * kRowBytes, words);
      }
      ptx::copy_engine_fence();
      ptx::named_barrier(2 + warpgroup, 128);
      if (stores()) {
        ptx::tensor_store(&args.y_tensor, (walk.row_tile + warpgroup * 4) * kTileHeight,
                          walk.token * kTokens + half * kHalf, walk.group, from);
        ptx::bulk_commit();
      }
    }
  }
  // Returns when the two blocks may be let go, by this warp.
  __device__ __forceinline__ void wait_taken() const {
    if (stores()) ptx::bulk_wait_read();
    __syncwarp();
  }
  // Returns when everything is stored.
  __device__ __forceinline__ void end() const {
    if (stores()) ptx::bulk_wait();
  }

 private:
  static constexpr int kRowBytes = 4 * kTileHeight * 2;

  __device__ bool stores() const { return warp_ % 4 == 0 && lane_ == 0; }
  __device__ static uint32_t pair(float first, float second) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const uint32_t&>(both);
  }

  const int warp_;
  const int lane_;
};

}  // namespace espalier::cuda
