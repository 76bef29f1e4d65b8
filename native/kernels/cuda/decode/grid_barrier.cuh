// Where the computing warps of all blocks of a kernel wait for each other, or those of the blocks that have a place in
// common, as a KV head is. The blocks must all be on the GPU at once.
#pragma once

#include "kernels/cuda/decode/context.cuh"

namespace espalier::cuda {

class GridBarrier {
 public:
  // `counters`: kGridCounters and one for each of the places, zeros when the kernel starts.
  __device__ GridBarrier(unsigned* counters, int places) : counters_(counters), places_(places) {}

  // What this block wrote may be read by those that come out of wait().
  __device__ void arrive() {
    target_ += gridDim.x;
    sync_workers();
    if (threadIdx.x == 0) add_one(counters_);
  }
  // Every block has arrived. What others wrote is read past the first-level cache.
  __device__ void wait() {
    if (threadIdx.x == 0) await(counters_, target_);
    sync_workers();
  }
  // The same for the blocks of a place only: `arrivals` of them, counted since the kernel started.
  __device__ void arrive_at(int place) {
    sync_workers();
    if (threadIdx.x == 0) add_one(counters_ + kGridCounters + place);
  }
  __device__ void wait_at(int place, unsigned arrivals) {
    if (threadIdx.x == 0) await(counters_ + kGridCounters + place, arrivals);
    sync_workers();
  }
  // Makes the counters zeros for the next kernel: the last of the blocks to come here, when none waits any more.
  __device__ void finish() {
    sync_workers();
    if (threadIdx.x != 0 || atomicAdd(counters_ + 1, 1u) + 1 < gridDim.x) return;
    for (int i = 0; i < kGridCounters + places_; ++i) counters_[i] = 0;
  }

 private:
  __device__ static void add_one(unsigned* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
  __device__ static void await(const unsigned* counter, unsigned target) {
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (seen < target);
  }

  unsigned* counters_;
  const int places_;
  unsigned target_ = 0;
};

}  // namespace espalier::cuda
