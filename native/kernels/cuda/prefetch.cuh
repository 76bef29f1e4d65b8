// What kernels bring into the L2 cache for those after them.
#pragma once

#include "kernels/cuda/ptx/memory.cuh"

namespace espalier::cuda {

// Brings the block's share of `bytes`, a multiple of 16, into the L2 cache. One thread's of each block.
__device__ __forceinline__ void prefetch_share(const void* from, int64_t bytes) {
  const int64_t share = (bytes / 16 + gridDim.x - 1) / gridDim.x * 16;
  const int64_t begin = share * blockIdx.x;
  const int64_t mine = min(share, bytes - begin);
  if (mine > 0) ptx::prefetch_to_cache(static_cast<const uint8_t*>(from) + begin, static_cast<uint32_t>(mine));
}

}  // namespace espalier::cuda
