// Codes and scales of tiles as code_tiles.h has them, in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/code_tiles.h"
#include "kernels/cuda/ptx/memory.cuh"

namespace espalier::cuda {

// What the numbers that come of a code lack.
inline constexpr float kCodeUnit = 64;

// Two pairs of bf16 numbers, exactly the codes / kCodeUnit.
__device__ __forceinline__ void split_codes(uint32_t word, uint32_t& first, uint32_t& second) {
  constexpr uint32_t kMask = 0x807f807fu;
  // From 2⁻¹³³, where a code of 1 is the least number.
  const __nv_bfloat162 scale = __halves2bfloat162(__ushort_as_bfloat16(0x7f00), __ushort_as_bfloat16(0x7f00));
  const auto number = [&](uint32_t bits) {
    const __nv_bfloat162 product = __hmul2(reinterpret_cast<const __nv_bfloat162&>(bits), scale);
    return reinterpret_cast<const uint32_t&>(product);
  };
  first = number(word & kMask);
  second = number(__funnelshift_l(word, word, 8) & kMask);
}

// The scales that a lane needs of a tile: of its rows g and g + 8 in two groups of inputs.
class CodeScales {
 public:
  // `scales` is where those of the tile begin.
  __device__ void load(uint32_t scales, int lane) { words_ = ptx::load_shared_8(scales + lane / 4 * 8); }

  // acc += sums · scale, for sums of codes / kCodeUnit of a group.
  template <int kPart, int kBlocks>
  __device__ __forceinline__ void add(float (&acc)[kBlocks][4], const float (&sums)[2][4]) const {
    const float2 scale = of_part<kPart>();
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      acc[i][0] += scale.x * sums[i][0];
      acc[i][1] += scale.x * sums[i][1];
      acc[i][2] += scale.y * sums[i][2];
      acc[i][3] += scale.y * sums[i][3];
    }
  }

  // codes / kCodeUnit · scale as bf16, hardly more than half of its last place from the exact weight: a bf16 scale has
  // three bits less than one in f16, which come as a second one. kHalf: 0 for row g, 1 for row g + 8.
  template <int kPart, int kHalf>
  __device__ __forceinline__ uint32_t round(uint32_t pair) const {
    const float2 scales = of_part<kPart>();
    const float scale = kHalf == 0 ? scales.x : scales.y;
    const __nv_bfloat16 large = __float2bfloat16_rn(scale);
    const __nv_bfloat16 rest = __float2bfloat16_rn(scale - __bfloat162float(large));
    const auto& codes = reinterpret_cast<const __nv_bfloat162&>(pair);
    const __nv_bfloat162 weights =
        __hfma2(codes, __bfloat162bfloat162(large), __hmul2(codes, __bfloat162bfloat162(rest)));
    return reinterpret_cast<const uint32_t&>(weights);
  }

 private:
  template <int kPart>
  __device__ __forceinline__ float2 of_part() const {
    const uint32_t word = kPart == 0 ? words_.x : words_.y;
    const float2 scales = __half22float2(reinterpret_cast<const __half2&>(word));
    return {scales.x * kCodeUnit, scales.y * kCodeUnit};
  }

  uint2 words_;
};

}  // namespace espalier::cuda
