// 64-byte vectors through GCC's vector extension: one source for all instruction sets. A wider machine runs an
// operation in one instruction, a narrower one in several. Included only by files that are compiled once for each
// instruction set, so everything here has internal linkage: two of them must never be merged by the linker.
#pragma once

#include <cstdint>

namespace espalier {
namespace {

inline constexpr int kVectorFloats = 16;

typedef float Vf __attribute__((vector_size(64)));
typedef int32_t Vi __attribute__((vector_size(64)));
typedef uint32_t Vu __attribute__((vector_size(64)));

#define ESPALIER_INLINE inline __attribute__((always_inline))

ESPALIER_INLINE Vf load(const float* p) {
  Vf v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
ESPALIER_INLINE void store(float* p, Vf v) { __builtin_memcpy(p, &v, sizeof v); }
ESPALIER_INLINE Vf broadcast(float value) { return Vf{} + value; }

// The first n (< 16) floats, zeros behind them.
ESPALIER_INLINE Vf load_first(const float* p, int64_t n) {
  float lanes[kVectorFloats] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
ESPALIER_INLINE void store_first(float* p, int64_t n, Vf v) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

ESPALIER_INLINE float sum(Vf v) {
  float lanes[kVectorFloats];
  store(lanes, v);
  for (int width = kVectorFloats / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

ESPALIER_INLINE Vf max(Vf a, Vf b) { return a > b ? a : b; }
ESPALIER_INLINE float max_lane(Vf v) {
  float best = v[0];
  for (int i = 1; i < kVectorFloats; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// e^x to about 1 ulp on [-87, 88]; 0 below, saturated above.
ESPALIER_INLINE Vf exp(Vf x) {
  const Vf clamped = x < -87.0f ? broadcast(-87.0f) : (x > 88.0f ? broadcast(88.0f) : x);
  // x = n·ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts keeps r exact.
  const Vf rounded = clamped * 1.44269504088896341f + 12582912.0f;
  const Vf n = rounded - 12582912.0f;
  const Vf r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vf p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const Vi bits = __builtin_convertvector(n, Vi) + 127;
  const Vf result = p * reinterpret_cast<Vf>(bits << 23);
  return x < -87.0f ? Vf{} : result;
}

}  // namespace
}  // namespace espalier
