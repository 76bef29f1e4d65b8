// Loads and copies that C++ has no words for.
#pragma once

#include <cstdint>

namespace espalier::cuda::ptx {

// A cache hint for what is read once: what createpolicy.fractional.L2::evict_first makes of 1.0. The compiler would
// repeat that instruction wherever the hint is used.
__device__ __forceinline__ uint64_t read_once_policy() { return 0x12f0000000000000u; }

// A cache hint for what is soon read again.
__device__ __forceinline__ uint64_t read_again_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Starts to copy `bytes` (a multiple of 16, both sides aligned so) to shared memory; they count towards `barrier`.
__device__ __forceinline__ void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier,
                                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// Starts to bring `bytes` (a multiple of 16, aligned so) into the L2 cache.
__device__ __forceinline__ void prefetch_to_cache(const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// Orders this thread's stores to shared memory before copies by the copy engine that some thread starts later.
__device__ __forceinline__ void copy_engine_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ uint32_t load_shared(uint32_t from) {
  uint32_t value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
  return value;
}

// Eight bytes that one thread tells another of its block: what the first did before, the second sees done after.
__device__ __forceinline__ void store_release(uint32_t to, uint2 value) {
  const uint64_t both = (static_cast<uint64_t>(value.y) << 32) | value.x;
  asm volatile("st.release.cta.shared.b64 [%0], %1;" ::"r"(to), "l"(both) : "memory");
}
__device__ __forceinline__ uint2 load_acquire(uint32_t from) {
  uint64_t both;
  asm volatile("ld.acquire.cta.shared.b64 %0, [%1];" : "=l"(both) : "r"(from) : "memory");
  return {static_cast<uint32_t>(both), static_cast<uint32_t>(both >> 32)};
}

// A word that one thread tells others of the device: what the first did before, they see done after.
__device__ __forceinline__ void store_release_device(uint32_t* to, uint32_t value) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire_device(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Words that threads of the device write and read while others do, each for itself: nothing else is ordered by them.
__device__ __forceinline__ void store_relaxed_device(uint32_t* to, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t load_relaxed_device(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ uint2 load_relaxed_device_8(const uint32_t* from) {
  uint2 value;
  asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ uint4 load_relaxed_device_16(const uint32_t* from) {
  uint4 value;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from)
               : "memory");
  return value;
}

// Orders what this thread did with global memory, or learnt of it, before what the copy engine does there later.
__device__ __forceinline__ void copy_engine_global_fence() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

__device__ __forceinline__ uint2 load_shared_8(uint32_t from) {
  uint2 value;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(from) : "memory");
  return value;
}

__device__ __forceinline__ uint4 load_shared_16(uint32_t from) {
  uint4 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(from)
               : "memory");
  return value;
}

// Not by way of integers: with sums that have been such, ptxas waits after every product of a warpgroup.
__device__ __forceinline__ float4 load_shared_floats(uint32_t from) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(from)
               : "memory");
  return value;
}

__device__ __forceinline__ void store_shared(uint32_t to, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ __forceinline__ void store_shared(uint32_t to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

__device__ __forceinline__ void store_shared_8(uint32_t to, uint2 value) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(value.x), "r"(value.y) : "memory");
}

__device__ __forceinline__ void store_shared_16(uint32_t to, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}

__device__ __forceinline__ void store_shared_16(uint32_t to, float4 value) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(value.x), "f"(value.y), "f"(value.z),
               "f"(value.w)
               : "memory");
}

}  // namespace espalier::cuda::ptx
