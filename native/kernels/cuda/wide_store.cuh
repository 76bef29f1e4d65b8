// The end of a product of many tokens: sums from registers to memory.
#pragma once

#include "kernels/cuda/wide_walk.cuh"

namespace espalier::cuda {

// Stores what a warp has: of each eight tokens lane 4g + t has its rows g and g + 8 for 2t and 2t + 1, and stores two
// neighbouring rows for one of them. With `split`, this block stores each split-th eight.
template <int kTokens>
class WideStore {
 public:
  __device__ WideStore(const WideArgs& args, const WideWalk& walk, uint32_t rank, int row_tile, int lane)
      : args_(args),
        rank_(static_cast<int>(rank)),
        row_tile_(row_tile),
        odd_((lane & 4) != 0),
        in_eight_(lane / 8 * 2) {
    const int token = walk.token * kTokens + lane % 4 * 2 + (odd_ ? 1 : 0);
    row_of_y_ = static_cast<int64_t>(walk.group) * args.tokens + token;
    left_ = args.tokens - token;
  }

  __device__ __forceinline__ void store(const float (&sums)[kTokens / 2]) const {
    switch (args_.output) {
      case OutputType::kGated: store_gated(sums); break;
      case OutputType::kF32: store_rows(sums, static_cast<float*>(args_.y)); break;
      case OutputType::kBf16: store_rows(sums, static_cast<__nv_bfloat16*>(args_.y)); break;
    }
  }

 private:
  __device__ bool mine(int eight) const {
    return eight * 8 < left_ && (args_.split == 1 || eight % args_.split == rank_);
  }
  __device__ float2 neighbours(float even_token, float odd_token) const {
    const float other = __shfl_xor_sync(~0u, odd_ ? even_token : odd_token, 4);
    return odd_ ? float2{other, odd_token} : float2{even_token, other};
  }
  __device__ static void put(float* to, float2 rows) { *reinterpret_cast<float2*>(to) = rows; }
  __device__ static void put(__nv_bfloat16* to, float2 rows) {
    *reinterpret_cast<__nv_bfloat162*>(to) = __float22bfloat162_rn(rows);
  }

  template <class T>
  __device__ __forceinline__ void store_rows(const float (&sums)[kTokens / 2], T* y) const {
    const int row = row_tile_ * kTileHeight + in_eight_;
    T* to = y + row_of_y_ * args_.rows + row;
    const bool in_pairs = args_.rows % 2 == 0;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j, to += static_cast<int64_t>(8) * args_.rows) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair = neighbours(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
        const int left = args_.rows - row - 8 * half;
        if (!mine(j) || left <= 0) continue;
        if (in_pairs) {
          put(to + 8 * half, pair);
        } else {
          to[8 * half] = static_cast<T>(pair.x);
          if (left > 1) to[8 * half + 1] = static_cast<T>(pair.y);
        }
      }
    }
  }

  __device__ __forceinline__ void store_gated(const float (&sums)[kTokens / 2]) const {
    const auto gated = [](float gate, float up) { return __fdividef(gate, 1.0f + expf(-gate)) * up; };
    const int parts = 1 + args_.two_parts;
    const int stride = args_.rows / 2;
    auto* to =
        static_cast<__nv_bfloat16*>(args_.y) + row_of_y_ * parts * stride + row_tile_ * (kTileHeight / 2) + in_eight_;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j, to += static_cast<int64_t>(8) * parts * stride) {
      const float2 pair = neighbours(gated(sums[4 * j], sums[4 * j + 2]), gated(sums[4 * j + 1], sums[4 * j + 3]));
      if (!mine(j) || row_tile_ >= args_.row_tiles) continue;
      const __nv_bfloat162 large = __float22bfloat162_rn(pair);
      *reinterpret_cast<__nv_bfloat162*>(to) = large;
      if (parts == 2) put(to + stride, {rest(pair.x, large.x), rest(pair.y, large.y)});
    }
  }
  // Infinity stays infinity.
  __device__ static float rest(float value, __nv_bfloat16 large) {
    return isinf(value) ? 0.0f : value - __bfloat162float(large);
  }

  const WideArgs& args_;
  int64_t row_of_y_;
  int left_;
  const int rank_;
  const int row_tile_;
  const bool odd_;
  const int in_eight_;
};

}  // namespace espalier::cuda
