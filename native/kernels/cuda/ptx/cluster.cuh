// Blocks of a cluster: they run at the same time, and reach each other's shared memory.
#pragma once

#include <cstdint>

namespace espalier::cuda::ptx {

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Waits for all threads of the cluster; what they wrote to shared memory can be read.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// Where what is at `address` of this block's shared memory is in that of another block of the cluster.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// Zeros if nothing is there. Without a branch: loads one after the other are under way together.
__device__ __forceinline__ float4 load_cluster_16(uint32_t from, bool exists) {
  float4 value{};
  asm volatile(
      "{\n"
      ".reg .pred exists;\n"
      "setp.ne.s32 exists, %5, 0;\n"
      "@exists ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+f"(value.x), "+f"(value.y), "+f"(value.z), "+f"(value.w)
      : "r"(from), "r"(static_cast<int>(exists))
      : "memory");
  return value;
}

// Arrives at a barrier of a block of the cluster, at an address of address_in(). For readers who are done: a release
// for the whole cluster would wait for a memory barrier, a thousand cycles.
__device__ __forceinline__ void barrier_arrive_there(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Brings what describes a tensor into its cache.
__device__ __forceinline__ void prefetch_tensor(const void* tensor) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(tensor) : "memory");
}

// Starts to copy a box of a tensor of three dimensions to shared memory; its bytes count towards `barrier`. Outside of
// the tensor are zeros. `tensor` is a CUtensorMap.
__device__ __forceinline__ void tensor_load(uint32_t to, const void* tensor, int x, int y, int z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
          "r"(to),
      "l"(tensor), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

// The same of four dimensions.
__device__ __forceinline__ void tensor_load(uint32_t to, const void* tensor, int x, int y, int z, int w,
                                            uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(to),
      "l"(tensor), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
      : "memory");
}

// Three dimensions, to the same place of all blocks whose bit is set in `blocks`, and towards the barriers there.
__device__ __forceinline__ void tensor_load_to(uint16_t blocks, uint32_t to, const void* tensor, int x, int y, int z,
                                               uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(tensor), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(blocks)
      : "memory");
}

}  // namespace espalier::cuda::ptx
