// Stores floats as sums of bf16 parts.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/parts.h"

namespace espalier::cuda {

__device__ __forceinline__ void store_parts(const PartRows& out, int64_t row, int index, float value) {
  auto* to = reinterpret_cast<__nv_bfloat16*>(out.data) + row * out.parts * out.stride + index;
  for (int part = 0; part < out.parts; ++part) {
    const __nv_bfloat16 rounded = __float2bfloat16_rn(value);
    to[part * out.stride] = rounded;
    // Infinity stays infinity.
    value = isinf(value) ? 0.0f : value - __bfloat162float(rounded);
  }
}

}  // namespace espalier::cuda
