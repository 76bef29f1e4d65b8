// Copies from global to shared memory that a thread starts and waits for later, and loads of matrix fragments from
// there. Addresses are in the shared window.
#pragma once

#include <cstdint>

namespace espalier::cuda::ptx {

// Starts to copy 16 bytes, of which `bytes` (16 or 0) are read and the others zeros; both sides 16-byte aligned.
__device__ __forceinline__ void async_copy_16(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// The same, for what other warps of the multiprocessor are likely to copy, too.
__device__ __forceinline__ void async_copy_cached_16(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Closes a group of the copies that this thread has started.
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Returns when all but the last kGroups groups of this thread are there.
template <int kGroups>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Four 8 × 8 matrices of 16-bit elements; lane 8i + r gives the address of row r of matrix i. A lane gets elements
// 2 · (lane % 4) and the next of row lane / 4 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

}  // namespace espalier::cuda::ptx
