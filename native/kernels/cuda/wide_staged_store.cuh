// Sums that go out through shared memory: while they were stored from registers no tensor core worked. Each warp lays
// its part down, one thread of each warpgroup has the copy engine take it from there, and the next item begins. As bf16
// they are as large as two blocks of x, and lie where an item's last two were, which are let go only when the sums have
// been taken; as float32 they take two turns.
#pragma once

#include "kernels/cuda/ptx/tensor_store.cuh"
#include "kernels/cuda/wide_store.cuh"

namespace espalier::cuda {

// Blocks of x whose place the sums take.
inline constexpr int kStagedBlocks = 2;
// Rows of y that a warpgroup stores together.
inline constexpr int kStagedRows = 4 * kTileHeight;

template <int kTokens>
class StagedStore {
 public:
  __device__ StagedStore(int warp, int lane) : warp_(warp % 4), warpgroup_(warp / 4), lane_(lane) {}

  // Starts to store what the two warpgroups have, at `x` and the block after it, of which all products are done.
  __device__ __forceinline__ void start(const WideArgs& args, const WideRings& rings, const WideWalk& walk, WidePlace x,
                                        const float (&sums)[kTokens / 2]) const {
    uint32_t to[kStagedBlocks];
#pragma unroll
    for (uint32_t& place : to) {
      place = rings.x + x.stage * kWideXBytes<kTokens> + warpgroup_ * kHalfBytes;
      x.next(args.x_stages);
    }
    const int row = (walk.row_tile + warpgroup_ * 4) * kTileHeight;
    ptx::named_barrier(1, kWideConsumers * 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = walk.token * kTokens + half * kHalf;
      const auto store = [&](int first, int part, uint32_t from) {
        ptx::tensor_store(&args.y_tensor, first, part, token, walk.group, from);
      };
      switch (args.output) {
        case OutputType::kGated:
          lay_gated(sums, half, to[half], args.two_parts);
          share();
          if (!stores()) break;
          store(row / 2, 0, to[half]);
          if (args.two_parts != 0) store(row / 2, 1, to[half] + kHalfBytes / 2);
          break;
        case OutputType::kBf16:
          lay_rows(sums, half, to[half]);
          share();
          if (stores()) store(row, 0, to[half]);
          break;
        case OutputType::kF32:
          if (half == 1) {
            wait_taken();
            ptx::named_barrier(2 + warpgroup_, 128);
          }
          lay_floats(sums, half, warp_ < 2 ? to[0] : to[1]);
          share();
          if (!stores()) break;
          store(row, 0, to[0]);
          store(row + kStagedRows / 2, 0, to[1]);
          break;
      }
      if (stores()) ptx::bulk_commit();
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
  static constexpr int kHalf = kTokens / kStagedBlocks;
  static constexpr int kHalfBytes = kHalf * kStagedRows * 2;

  __device__ bool stores() const { return warp_ == 0 && lane_ == 0; }
  // Shows the copy engine what the warpgroup has laid down.
  __device__ void share() const {
    ptx::copy_engine_fence();
    ptx::named_barrier(2 + warpgroup_, 128);
  }

  // 128 bytes a token, swizzled: the eight addresses of a matrix are in different banks.
  __device__ __forceinline__ void lay_rows(const float (&sums)[kTokens / 2], int half, uint32_t to) const {
    constexpr int kTokenBytes = kStagedRows * 2;
    const int eight_rows = warp_ * 2 + lane_ / 8 % 2;
    to += (lane_ / 16 * 8 + lane_ % 8) * kTokenBytes + (eight_rows ^ lane_ % 8) * 16;
#pragma unroll
    for (int eight = 0; eight < kHalf / 8; eight += 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int sum = (half * kHalf / 8 + eight) * 4 + 2 * i;
        words[i] = word_of(__floats2bfloat162_rn(sums[sum], sums[sum + 1]));
      }
      ptx::store_matrices_turned(to + eight * 8 * kTokenBytes, words);
    }
  }
  // 64 bytes a token, swizzled likewise; the second part behind the first one.
  __device__ __forceinline__ void lay_gated(const float (&sums)[kTokens / 2], int half, uint32_t to,
                                            int two_parts) const {
    constexpr int kTokenBytes = kStagedRows;
    to += lane_ * kTokenBytes + (warp_ ^ lane_ / 2 % 4) * 16;
#pragma unroll
    for (int eight = 0; eight < kHalf / 8; eight += 4) {
      uint32_t words[4];
      uint32_t rests[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int sum = (half * kHalf / 8 + eight + i) * 4;
        const float2 pair{gated(sums[sum], sums[sum + 2]), gated(sums[sum + 1], sums[sum + 3])};
        const __nv_bfloat162 large = __float22bfloat162_rn(pair);
        words[i] = word_of(large);
        rests[i] = word_of(__floats2bfloat162_rn(rest(pair.x, large.x), rest(pair.y, large.y)));
      }
      ptx::store_matrices_turned(to + eight * 8 * kTokenBytes, words);
      if (two_parts != 0) ptx::store_matrices_turned(to + kHalfBytes / 2 + eight * 8 * kTokenBytes, rests);
    }
  }
  // 128 bytes a token for two warps, swizzled likewise.
  __device__ __forceinline__ void lay_floats(const float (&sums)[kTokens / 2], int half, uint32_t to) const {
    constexpr int kTokenBytes = kStagedRows / 2 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp_ % 2 * kTileHeight + lane_ / 4 + i / 2 * 8;
      const int token = lane_ % 4 * 2 + i % 2;
      const uint32_t place = to + token * kTokenBytes + (row / 4 ^ token) * 16 + row % 4 * 4;
#pragma unroll
      for (int eight = 0; eight < kHalf / 8; ++eight) {
        ptx::store_shared(place + eight * 8 * kTokenBytes, sums[(half * kHalf / 8 + eight) * 4 + i]);
      }
    }
  }
  __device__ static uint32_t word_of(__nv_bfloat162 pair) { return reinterpret_cast<const uint32_t&>(pair); }

  const int warp_;  // of its warpgroup
  const int warpgroup_;
  const int lane_;
};

}  // namespace espalier::cuda
