// Kernels that start before the previous one on their stream has ended.
#pragma once

namespace espalier::cuda::ptx {

// Returns when all kernels before this one have ended and what they wrote can be read.
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Allows the next kernel to start as soon as there is room for it.
__device__ __forceinline__ void allow_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace espalier::cuda::ptx
