// The plain read of memory that products are compared with.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace espalier::cuda {

inline constexpr int kReadThreads = 512;

// Reads `size` blocks of 16 bytes, the plainest thing that can be done with them.
static __global__ void __launch_bounds__(kReadThreads) read_kernel(const uint4* data, int64_t size, uint32_t* sink) {
  uint32_t seen = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < size; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) v[u] = __ldcs(data + i + u * stride);
#pragma unroll
    for (int u = 0; u < 8; ++u) seen |= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  for (; i < size; i += stride) seen |= __ldcs(data + i).x;
  // Never so in practice, which the compiler cannot know.
  if (seen == 0x9e3779b9u) *sink = seen;
}

}  // namespace espalier::cuda
