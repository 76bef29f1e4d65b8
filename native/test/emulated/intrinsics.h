// What CUDA adds to C++ for code of the device, but for what an instruction of its own does (kernels/cuda/ptx).
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "barriers.h"

// Of the thread that runs.
inline uint3 threadIdx;
inline uint3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

inline void __syncthreads() { emulated::sync_threads(); }
inline void __threadfence() {}
inline void __nanosleep(unsigned) { emulated::pause(); }
inline void __syncwarp(uint32_t mask = ~0u) {
  int nothing = 0;
  emulated::together(mask, nothing, "__syncwarp", [](int* const*, uint32_t) {});
}

namespace emulated {

// Each lane gets what the lane source(lane) has, or keeps its own where that is not taking part.
template <class T, class Source>
T shuffle(uint32_t mask, T value, const char* name, const Source& source) {
  struct Lane {
    T value;
    int source;
  };
  const int lane = current().lane;
  Lane mine{value, source(lane)};
  together(mask, mine, name, [](Lane* const* lanes, uint32_t all) {
    T values[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      if (lanes[l] != nullptr) values[l] = lanes[l]->value;
    }
    for (int l = 0; l < kLanes; ++l) {
      if (lanes[l] == nullptr) continue;
      const int from = lanes[l]->source;
      if ((all >> from & 1) != 0) lanes[l]->value = values[from];
    }
  });
  return mine.value;
}

template <class T, class Join>
T reduce(uint32_t mask, T value, const char* name, const Join& join) {
  together(mask, value, name, [&](T* const* lanes, uint32_t) {
    const T* first = nullptr;
    T all{};
    for (int l = 0; l < kLanes; ++l) {
      if (lanes[l] == nullptr) continue;
      all = first == nullptr ? *lanes[l] : join(all, *lanes[l]);
      first = lanes[l];
    }
    for (int l = 0; l < kLanes; ++l) {
      if (lanes[l] != nullptr) *lanes[l] = all;
    }
  });
  return value;
}

}  // namespace emulated

template <class T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32) {
  return emulated::shuffle(mask, value, "shfl", [=](int lane) { return (lane & ~(width - 1)) | (from & (width - 1)); });
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32) {
  return emulated::shuffle(mask, value, "shfl.xor", [=](int lane) {
    const int from = lane ^ bits;
    return from / width == lane / width ? from : lane;
  });
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int distance, int width = 32) {
  return emulated::shuffle(mask, value, "shfl.up",
                           [=](int lane) { return lane % width >= distance ? lane - distance : lane; });
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int distance, int width = 32) {
  return emulated::shuffle(mask, value, "shfl.down",
                           [=](int lane) { return lane % width + distance < width ? lane + distance : lane; });
}
inline uint32_t __ballot_sync(uint32_t mask, bool value) {
  uint32_t bit = value ? 1u << emulated::current().lane : 0;
  return emulated::reduce(mask, bit, "ballot", [](uint32_t a, uint32_t b) { return a | b; });
}
inline bool __any_sync(uint32_t mask, bool value) { return __ballot_sync(mask, value) != 0; }
template <class T>
T __reduce_min_sync(uint32_t mask, T value) {
  return emulated::reduce(mask, value, "reduce.min", [](T a, T b) { return std::min(a, b); });
}
template <class T>
T __reduce_max_sync(uint32_t mask, T value) {
  return emulated::reduce(mask, value, "reduce.max", [](T a, T b) { return std::max(a, b); });
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T, class U>
T atomicAdd(T* to, U value) {
  const T before = *to;
  *to = before + static_cast<T>(value);
  emulated::note_progress();
  return before;
}

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline int __popc(uint32_t bits) { return std::popcount(bits); }
inline int __ffs(uint32_t bits) { return bits == 0 ? 0 : std::countr_zero(bits) + 1; }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift % 32));
}
inline uint32_t __funnelshift_rc(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> std::min(shift, 32u));
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << (shift % 32) >> 32);
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i);
    auto byte = static_cast<uint32_t>(both >> (nibble % 8 * 8) & 0xff);
    if ((nibble & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    bytes |= byte << (8 * i);
  }
  return bytes;
}
inline uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t sum) {
  for (int i = 0; i < 4; ++i) sum += (a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff);
  return sum;
}
inline uint32_t __dp2a_lo(uint32_t a, uint32_t b, uint32_t sum) {
  return sum + (a & 0xffff) * (b & 0xff) + (a >> 16) * (b >> 8 & 0xff);
}
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float value) { return 1.0f / value; }
inline float __frsqrt_rn(float value) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(value))); }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  const auto one = [](__nv_bfloat16 x, __nv_bfloat16 y, __nv_bfloat16 z) {
    return __float2bfloat16_rn(std::fma(__bfloat162float(x), __bfloat162float(y), __bfloat162float(z)));
  };
  return {one(a.x, b.x, c.x), one(a.y, b.y, c.y)};
}
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
