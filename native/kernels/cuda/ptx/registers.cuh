// Registers, of a lane and between those of a warp, whose lanes all take part.
#pragma once

#include <cstdint>

namespace espalier::cuda::ptx {

// The lane's own value, which is not computed anew wherever it is used, as what is only arithmetic would be.
__device__ __forceinline__ uint32_t keep(uint32_t value) {
  uint32_t kept;
  asm volatile(
      "{\n"
      ".reg .b32 lane;\n"
      "mov.u32 lane, %%laneid;\n"
      "shfl.sync.idx.b32 %0, %1, lane, 31, -1;\n"
      "}"
      : "=r"(kept)
      : "r"(value));
  return kept;
}
template <class T>
__device__ __forceinline__ T* keep(T* pointer) {
  const auto bits = reinterpret_cast<uint64_t>(pointer);
  const uint64_t high = keep(static_cast<uint32_t>(bits >> 32));
  return reinterpret_cast<T*>(high << 32 | keep(static_cast<uint32_t>(bits)));
}

// Moves a pointer on. Where the compiler sees what is added in a loop, it multiplies anew each time.
template <class T>
__device__ __forceinline__ void advance(T*& pointer, int count) {
  asm("mad.wide.s32 %0, %1, %2, %0;" : "+l"(pointer) : "r"(count), "n"(sizeof(T)));
}

// Four of the eight bytes of a and b, as the lowest four nibbles of `selector` say. Unlike __byte_perm, it takes the
// word as it is.
__device__ __forceinline__ uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
  return bytes;
}

// True for one lane of the warp, always the same.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred is_it;\n"
      "elect.sync _|is_it, -1;\n"
      "selp.b32 %0, 1, 0, is_it;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// The sum of the values of this lane and those before it.
__device__ __forceinline__ uint32_t inclusive_sum(uint32_t value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    asm volatile(
        "{\n"
        ".reg .b32 left;\n"
        ".reg .pred exists;\n"
        "shfl.sync.up.b32 left|exists, %0, %1, 0, -1;\n"
        "@exists add.u32 %0, %0, left;\n"
        "}"
        : "+r"(value)
        : "r"(distance));
  }
  return value;
}

}  // namespace espalier::cuda::ptx
