// The end of a product of many tokens: sums from registers to memory.
#pragma once

#include "kernels/cuda/wide_walk.cuh"

namespace espalier::cuda {

__device__ __forceinline__ float gated(float gate, float up) { return __fdividef(gate, 1.0f + expf(-gate)) * up; }

// What is left of a value when it was rounded. Infinity stays infinity.
__device__ __forceinline__ float rest(float value, __nv_bfloat16 rounded) {
  return isinf(value) ? 0.0f : value - __bfloat162float(rounded);
}

// Of an item's tokens, those whose sums a warp has: all, or a share where blocks have split the item.
struct Eights {
  int first;
  int count;
};

// Stores what a warp has: of each eight tokens lane 4g + t has its rows g and g + 8 for 2t and 2t + 1, and stores four
// neighbouring rows for one of them, gated ones two.
template <int kTokens>
class WideStore {
 public:
  __device__ WideStore(const WideArgs& args, const WideWalk& walk, const Eights& eights, int row_tile, int lane)
      : args_(args),
        count_(eights.count),
        row_tile_(row_tile),
        odd_((lane & 4) != 0),
        high_((lane & 8) != 0),
        lane_(lane) {
    const int token = walk.token * kTokens + eights.first * 8 + lane % 4 * 2 + (odd_ ? 1 : 0);
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
  __device__ float2 neighbours(float even_token, float odd_token) const {
    const float other = __shfl_xor_sync(~0u, odd_ ? even_token : odd_token, 4);
    return odd_ ? float2{other, odd_token} : float2{even_token, other};
  }
  // From neighbours of rows g and g + 8 to four rows: the first two of them, or the last.
  __device__ float4 fours(float2 upper, float2 lower) const {
    const float x = __shfl_xor_sync(~0u, high_ ? upper.x : lower.x, 8);
    const float y = __shfl_xor_sync(~0u, high_ ? upper.y : lower.y, 8);
    return high_ ? float4{x, y, lower.x, lower.y} : float4{upper.x, upper.y, x, y};
  }
  __device__ static void put(__nv_bfloat16* to, float2 rows) {
    *reinterpret_cast<__nv_bfloat162*>(to) = __float22bfloat162_rn(rows);
  }
  __device__ static void put(float* to, float4 rows) { *reinterpret_cast<float4*>(to) = rows; }
  __device__ static void put(__nv_bfloat16* to, float4 rows) {
    struct alignas(8) Four {
      __nv_bfloat162 pairs[2];
    };
    *reinterpret_cast<Four*>(to) = {__float22bfloat162_rn({rows.x, rows.y}), __float22bfloat162_rn({rows.z, rows.w})};
  }

  template <class T>
  __device__ __forceinline__ void store_rows(const float (&sums)[kTokens / 2], T* y) const {
    const int row = row_tile_ * kTileHeight + (high_ ? 8 : 0) + (lane_ & 16) / 4;
    const int left = args_.rows - row;
    T* to = y + row_of_y_ * args_.rows + row;
    const bool in_fours = args_.rows % 4 == 0;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j, to += static_cast<int64_t>(8) * args_.rows) {
      if (j >= count_) break;
      const float4 rows = fours(neighbours(sums[4 * j], sums[4 * j + 1]), neighbours(sums[4 * j + 2], sums[4 * j + 3]));
      if (8 * j >= left_ || left <= 0) continue;
      if (in_fours) {
        put(to, rows);
      } else {
        to[0] = static_cast<T>(rows.x);
        if (left > 1) to[1] = static_cast<T>(rows.y);
        if (left > 2) to[2] = static_cast<T>(rows.z);
        if (left > 3) to[3] = static_cast<T>(rows.w);
      }
    }
  }

  __device__ __forceinline__ void store_gated(const float (&sums)[kTokens / 2]) const {
    const int parts = 1 + args_.two_parts;
    const int stride = args_.rows / 2;
    auto* to = static_cast<__nv_bfloat16*>(args_.y) + row_of_y_ * parts * stride + row_tile_ * (kTileHeight / 2) +
               lane_ / 8 * 2;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j, to += static_cast<int64_t>(8) * parts * stride) {
      if (j >= count_) break;
      const float2 pair = neighbours(gated(sums[4 * j], sums[4 * j + 2]), gated(sums[4 * j + 1], sums[4 * j + 3]));
      if (8 * j >= left_ || row_tile_ >= args_.row_tiles) continue;
      const __nv_bfloat162 large = __float22bfloat162_rn(pair);
      *reinterpret_cast<__nv_bfloat162*>(to) = large;
      if (parts == 2) put(to + stride, float2{rest(pair.x, large.x), rest(pair.y, large.y)});
    }
  }
  const WideArgs& args_;
  int64_t row_of_y_;
  int left_;
  const int count_;
  const int row_tile_;
  const bool odd_;
  const bool high_;
  const int lane_;
};

}  // namespace espalier::cuda
