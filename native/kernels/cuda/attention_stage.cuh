// From floats or bf16 in memory to bf16 parts in shared memory.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace espalier::cuda {

__device__ __forceinline__ uint32_t pack(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two floats as bf16, and what that leaves of them.
struct Pair {
  uint32_t large;
  uint32_t small;
  __device__ Pair(float first, float second)
      : large(pack(first, second)), small(pack(first - low(large), second - high(large))) {}
};

// Four neighbours of a cache, and how they get into shared memory: their second parts `part_bytes` behind the first.
__device__ __forceinline__ void load_four(const float* from, bool used, float4& four) {
  four = used ? __ldg(reinterpret_cast<const float4*>(from)) : float4{};
}
__device__ __forceinline__ void load_four(const __nv_bfloat16* from, bool used, uint2& four) {
  four = used ? __ldg(reinterpret_cast<const uint2*>(from)) : uint2{};
}
__device__ __forceinline__ void store_four(const float4& four, uint8_t* to, int part_bytes) {
  const Pair a(four.x, four.y);
  const Pair b(four.z, four.w);
  *reinterpret_cast<uint2*>(to) = {a.large, b.large};
  *reinterpret_cast<uint2*>(to + part_bytes) = {a.small, b.small};
}
__device__ __forceinline__ void store_four(const uint2& four, uint8_t* to, int) {
  *reinterpret_cast<uint2*>(to) = four;
}

struct StagePlace {
  int64_t at;
  bool used;
  uint8_t* to;
};

template <class T>
struct FourOf;
template <>
struct FourOf<float> {
  using Type = float4;
};
template <>
struct FourOf<__nv_bfloat16> {
  using Type = uint2;
};

// Stages kCount fours of the block: `place(i)` says where the i-th lies, whether it is used, and where it goes to. Some
// loads are under way together.
template <class T, int kThreads, int kCount, class Place>
__device__ __forceinline__ void stage(const T* cache, int part_bytes, const Place& place) {
  constexpr int kAhead = 8;
  static_assert(kCount % (kAhead * kThreads) == 0);
#pragma unroll 1
  for (int first = threadIdx.x; first < kCount; first += kAhead * kThreads) {
    typename FourOf<T>::Type fours[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const StagePlace four = place(first + j * kThreads);
      load_four(cache + four.at, four.used, fours[j]);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) store_four(fours[j], place(first + j * kThreads).to, part_bytes);
  }
}

}  // namespace espalier::cuda
