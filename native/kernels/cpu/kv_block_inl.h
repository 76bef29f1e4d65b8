// Elements of a KV block: how a token's keys and values are put there, and how vectors of them are read. Compiled once
// for each instruction set. Element is float, uint16_t (bf16) or int8_t.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace espalier {
namespace {

// Dimensions of an int8 key that lie together: what one lane of a dot product takes.
inline constexpr int kDotBytes = 4;

// Floats of 16 elements.
ESPALIER_INLINE Vf load_kv(const float* p) { return load(p); }

#if defined(__AVX512F__)
ESPALIER_INLINE Vf load_kv(const uint16_t* p) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return reinterpret_cast<Vf>(reinterpret_cast<Vu>(_mm512_maskz_cvtepu16_epi32(0xffff, narrow)) << 16);
}
// GCC 12 splits a conversion of the vector extension into single bytes.
ESPALIER_INLINE Vf load_kv(const int8_t* p) {
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return to_floats(reinterpret_cast<Vi>(_mm512_maskz_cvtepi8_epi32(0xffff, narrow)));
}
#elif defined(__AVX2__)
ESPALIER_INLINE Vf load_kv(const uint16_t* p) {
  const auto part = [&](int i) __attribute__((always_inline)) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
    return reinterpret_cast<Rf>(reinterpret_cast<Ru>(_mm256_cvtepu16_epi32(narrow)) << 16);
  };
  return {part(0), part(1)};
}
ESPALIER_INLINE Vf load_kv(const int8_t* p) {
  const auto part = [&](int i) __attribute__((always_inline)) {
    const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i));
    return to_floats(reinterpret_cast<Ri>(_mm256_cvtepi8_epi32(narrow)));
  };
  return {part(0), part(1)};
}
#elif defined(__ARM_NEON)
ESPALIER_INLINE Vf load_kv(const uint16_t* p) {
  const auto part = [&](int i) __attribute__((always_inline)) {
    return reinterpret_cast<Rf>(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  };
  return {{part(0), part(1)}, {part(2), part(3)}};
}
ESPALIER_INLINE Vf load_kv(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes));
  const int16x8_t high = vmovl_s8(vget_high_s8(bytes));
  const auto part = [](int16x4_t four) __attribute__((always_inline)) {
    return static_cast<Rf>(vcvtq_f32_s32(vmovl_s16(four)));
  };
  return {{part(vget_low_s16(low)), part(vget_high_s16(low))}, {part(vget_low_s16(high)), part(vget_high_s16(high))}};
}
#else
template <class Element>
ESPALIER_INLINE Vf load_kv(const Element* p) {
  float lanes[kVectorFloats];
  for (int i = 0; i < kVectorFloats; ++i) {
    if constexpr (sizeof(Element) == 2) {
      lanes[i] = bf16_to_float(p[i]);
    } else {
      lanes[i] = static_cast<float>(p[i]);
    }
  }
  return load(lanes);
}
#endif

// Adding it leaves the nearest whole number, ties to even, in the low bits of the fraction.
inline constexpr float kRounder = 12582912.0f;

// |v| ≤ 127.
ESPALIER_INLINE void store_rounded(int8_t* p, Vf v) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(v + kRounder));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
#else
  uint32_t lanes[kVectorFloats];
  store_to(lanes, v + kRounder);
  for (int i = 0; i < kVectorFloats; ++i) p[i] = static_cast<int8_t>(lanes[i] & 0xffu);
#endif
}

// max|x| / 127; NaN where x is not finite throughout.
ESPALIER_INLINE float int8_scale(const float* x, int64_t n) {
  Vf largest = {};
  Vf poison = {};
  for (int64_t i = 0; i < n; i += kVectorFloats) {
    const Vf v = i + kVectorFloats <= n ? load(x + i) : load_first(x + i, n - i);
    largest = max(largest, max(v, -v));
    poison += v * 0.0f;
  }
  return max_lane(largest) * (1.0f / 127) + sum(poison);
}

// 0 where there is none: rows that are not finite, and those below 1.3e-36, which count as zeros.
ESPALIER_INLINE float inverse_of(float scale) { return scale > 1e-38f ? 1.0f / scale : 0.0f; }

// x as whole numbers of `scale`, zeros behind them up to whole vectors.
ESPALIER_INLINE void quantise_kv(const float* x, int64_t n, float scale, int8_t* q) {
  const float inverse = inverse_of(scale);
  for (int64_t i = 0; i < n; i += kVectorFloats) {
    store_rounded(q + i, (i + kVectorFloats <= n ? load(x + i) : load_first(x + i, n - i)) * inverse);
  }
}

template <class Element>
void write_kv(const KvWrite& task) {
  const int64_t dim = task.head_dim;
  auto* keys = reinterpret_cast<Element*>(task.keys) + task.place;
  auto* values = reinterpret_cast<Element*>(task.values) + task.place * dim;
  if constexpr (std::is_same_v<Element, float>) {
    for (int64_t d = 0; d < dim; ++d) keys[d * kKvBlock] = task.key[d];
    __builtin_memcpy(values, task.value, static_cast<size_t>(dim) * sizeof(float));
  } else {
    for (int64_t d = 0; d < dim; ++d) keys[d * kKvBlock] = float_to_bf16(task.key[d]);
    for (int64_t d = 0; d < dim; ++d) values[d] = float_to_bf16(task.value[d]);
  }
}

template <>
void write_kv<int8_t>(const KvWrite& task) {
  // A stretch of dimensions at a time, whatever their number.
  constexpr int64_t kStretch = 256;
  const int64_t dim = task.head_dim;
  const int64_t scales = kv_scales_offset(dim);
  auto* key_scale = reinterpret_cast<float*>(task.keys + scales) + task.place;
  auto* value_scale = reinterpret_cast<float*>(task.values + scales) + task.place;
  *key_scale = int8_scale(task.key, dim);
  *value_scale = int8_scale(task.value, dim);
  alignas(64) int8_t q[kStretch];
  for (int64_t first = 0; first < dim; first += kStretch) {
    const int64_t count = dim - first < kStretch ? dim - first : kStretch;
    quantise_kv(task.key + first, count, *key_scale, q);
    for (int64_t d = 0; d < count; d += kDotBytes) {
      uint32_t four;
      __builtin_memcpy(&four, q + d, sizeof four);
      four ^= 0x80808080u;  // q + 128
      __builtin_memcpy(task.keys + (first + d) * kKvBlock + task.place * kDotBytes, &four, sizeof four);
    }
    quantise_kv(task.value + first, count, *value_scale, q);
    __builtin_memcpy(task.values + task.place * dim + first, q, static_cast<size_t>(count));
  }
}

}  // namespace
}  // namespace espalier
