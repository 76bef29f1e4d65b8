// Where the computing warps of all blocks of a kernel wait for each other. The blocks must all be on the GPU at once.
#pragma once

#include "kernels/cuda/decode/context.cuh"

namespace espalier::cuda {

class GridBarrier {
 public:
  // `counters`: two, zeros when the kernel starts.
  __device__ explicit GridBarrier(unsigned* counters) : counters_(counters) {}

  // What this block wrote may be read by those that come out of wait().
  __device__ void arrive() {
    target_ += gridDim.x;
    sync_workers();
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counters_) : "memory");
    }
  }
  // Every block has arrived. What others wrote is read past the first-level cache.
  __device__ void wait() {
    if (threadIdx.x == 0) {
      unsigned seen;
      do {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counters_) : "memory");
      } while (seen < target_);
      asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
    sync_workers();
  }
  // Makes the counters zeros for the next kernel: the last of the blocks to come here, when none waits any more.
  __device__ void finish() {
    sync_workers();
    if (threadIdx.x != 0 || atomicAdd(counters_ + 1, 1u) + 1 < gridDim.x) return;
    counters_[0] = 0;
    counters_[1] = 0;
  }

 private:
  unsigned* counters_;
  unsigned target_ = 0;
};

}  // namespace espalier::cuda
