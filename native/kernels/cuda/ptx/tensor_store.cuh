// Results from registers through shared memory to global memory: matrices that a warp lays down, and boxes of a tensor
// that the copy engine takes from there. Addresses are in the shared window.
#pragma once

#include <cstdint>

namespace espalier::cuda::ptx {

// Four 8 × 8 matrices of 16-bit elements, each turned: lane 4g + t has elements 2t and 2t + 1 of row g of each, and
// lane 8i + c gives the address of the 16 bytes that column c of matrix i becomes.
__device__ __forceinline__ void store_matrices_turned(uint32_t to, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(from[0]),
               "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

// Starts to copy a box of a tensor of four dimensions from shared memory; what is outside of the tensor is left out.
// `tensor` is a CUtensorMap.
__device__ __forceinline__ void tensor_store(const void* tensor, int x, int y, int z, int w, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(tensor),
               "r"(x), "r"(y), "r"(z), "r"(w), "r"(from)
               : "memory");
}

// Closes a group of the stores that this thread has started.
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Returns when shared memory has been read by all stores of this thread.
__device__ __forceinline__ void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Returns when all stores of this thread are done.
__device__ __forceinline__ void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

}  // namespace espalier::cuda::ptx
