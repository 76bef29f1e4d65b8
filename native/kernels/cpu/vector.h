// 64-byte vectors: one source for all instruction sets. A vector is one register of GCC's vector extension where
// registers have 64 bytes, and halves of halves where they are narrower, so that each part stays in a register of its
// own: of a wider vector_size GCC keeps what a loop carries in memory. Included only by files that are compiled once
// for each instruction set, so everything here has internal linkage: two of them must never be merged by the linker.
#pragma once

#include <cstdint>
#include <type_traits>

namespace espalier {
namespace {

inline constexpr int kVectorFloats = 16;

#if defined(__AVX512F__)
#define ESPALIER_REGISTER_BYTES 64
#elif defined(__AVX2__)
#define ESPALIER_REGISTER_BYTES 32
#else
#define ESPALIER_REGISTER_BYTES 16
#endif

#define ESPALIER_INLINE inline __attribute__((always_inline))

// One register.
typedef float Rf __attribute__((vector_size(ESPALIER_REGISTER_BYTES)));
typedef int32_t Ri __attribute__((vector_size(ESPALIER_REGISTER_BYTES)));
typedef uint32_t Ru __attribute__((vector_size(ESPALIER_REGISTER_BYTES)));

// A vector as its halves, with the operators of the extension: between vectors, and with one number for all lanes.
template <class Half>
struct Twice {
  Half low;
  Half high;

  ESPALIER_INLINE auto operator[](int64_t lane) const {
    constexpr int64_t kLanes = sizeof(Half) / sizeof(float);
    return lane < kLanes ? low[lane] : high[lane - kLanes];
  }
};

#define ESPALIER_OPERATOR(op)                                                \
  template <class Half>                                                      \
  ESPALIER_INLINE Twice<Half> operator op(Twice<Half> a, Twice<Half> b) {    \
    return {a.low op b.low, a.high op b.high};                               \
  }                                                                          \
  template <class Half, class Number>                                        \
  requires std::is_arithmetic_v<Number> ESPALIER_INLINE Twice<Half>          \
  operator op(Twice<Half> a, Number b) { return {a.low op b, a.high op b}; } \
  template <class Half, class Other>                                         \
  ESPALIER_INLINE Twice<Half>& operator op##=(Twice<Half>& a, Other b) {     \
    return a = a op b;                                                       \
  }
ESPALIER_OPERATOR(+)
ESPALIER_OPERATOR(-)
ESPALIER_OPERATOR(*)
ESPALIER_OPERATOR(/)
ESPALIER_OPERATOR(&)
ESPALIER_OPERATOR(^)
ESPALIER_OPERATOR(<<)
#undef ESPALIER_OPERATOR

template <class Half>
ESPALIER_INLINE Twice<Half> operator-(Twice<Half> a) {
  return {-a.low, -a.high};
}

// `Register` repeated until there are 64 bytes.
template <class Register, int kBytes = sizeof(Register)>
struct Widened {
  using type = typename Widened<Twice<Register>, 2 * kBytes>::type;
};
template <class Vector>
struct Widened<Vector, 64> {
  using type = Vector;
};
using Vf = Widened<Rf>::type;
using Vi = Widened<Ri>::type;
using Vu = Widened<Ru>::type;
static_assert(sizeof(Vf) == 64 && sizeof(Vi) == 64 && sizeof(Vu) == 64);

// From and to any address, register by register: a copy of the whole would go through memory.
template <class Vector>
ESPALIER_INLINE Vector load_from(const void* p) {
  Vector v;
  if constexpr (std::is_class_v<Vector>) {
    using Half = decltype(v.low);
    v = {load_from<Half>(p), load_from<Half>(static_cast<const char*>(p) + sizeof(Half))};
  } else {
    __builtin_memcpy(&v, p, sizeof v);
  }
  return v;
}
template <class Vector>
ESPALIER_INLINE void store_to(void* p, Vector v) {
  if constexpr (std::is_class_v<Vector>) {
    store_to(p, v.low);
    store_to(static_cast<char*>(p) + sizeof v.low, v.high);
  } else {
    __builtin_memcpy(p, &v, sizeof v);
  }
}

ESPALIER_INLINE Vf load(const float* p) { return load_from<Vf>(p); }
ESPALIER_INLINE void store(float* p, Vf v) { store_to(p, v); }
ESPALIER_INLINE Vf broadcast(float value) { return Vf{} + value; }

// The first n (< 16) floats, zeros behind them.
ESPALIER_INLINE Vf load_first(const float* p, int64_t n) {
  float lanes[kVectorFloats] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
ESPALIER_INLINE void store_first(float* p, int64_t n, Vf v) {
  float lanes[kVectorFloats];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

ESPALIER_INLINE float sum(Vf v) {
  float lanes[kVectorFloats];
  store(lanes, v);
  for (int width = kVectorFloats / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// The same bits as floats.
ESPALIER_INLINE Rf as_floats(Ru v) { return reinterpret_cast<Rf>(v); }
template <class Half>
ESPALIER_INLINE auto as_floats(Twice<Half> v) {
  return Twice<decltype(as_floats(v.low))>{as_floats(v.low), as_floats(v.high)};
}

// The same numbers as floats.
ESPALIER_INLINE Rf to_floats(Ri v) { return __builtin_convertvector(v, Rf); }
template <class Half>
ESPALIER_INLINE auto to_floats(Twice<Half> v) {
  return Twice<decltype(to_floats(v.low))>{to_floats(v.low), to_floats(v.high)};
}

// In each lane a where x < 0, else b.
ESPALIER_INLINE Rf if_negative(Rf x, Rf a, Rf b) { return x < 0.0f ? a : b; }
template <class Half>
ESPALIER_INLINE Twice<Half> if_negative(Twice<Half> x, Twice<Half> a, Twice<Half> b) {
  return {if_negative(x.low, a.low, b.low), if_negative(x.high, a.high, b.high)};
}

ESPALIER_INLINE Rf max(Rf a, Rf b) { return a > b ? a : b; }
template <class Half>
ESPALIER_INLINE Twice<Half> max(Twice<Half> a, Twice<Half> b) {
  return {max(a.low, b.low), max(a.high, b.high)};
}
ESPALIER_INLINE float max_lane(Vf v) {
  float lanes[kVectorFloats];
  store(lanes, v);
  float best = lanes[0];
  for (int i = 1; i < kVectorFloats; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

// e^x to about 1 ulp on [-87, 88]; 0 below, saturated above.
ESPALIER_INLINE Rf exp(Rf x) {
  const Rf clamped = x < -87.0f ? Rf{} - 87.0f : (x > 88.0f ? Rf{} + 88.0f : x);
  // x = n·ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts keeps r exact.
  const Rf rounded = clamped * 1.44269504088896341f + 12582912.0f;
  const Rf n = rounded - 12582912.0f;
  const Rf r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Rf p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const Ri bits = __builtin_convertvector(n, Ri) + 127;
  const Rf result = p * reinterpret_cast<Rf>(bits << 23);
  return x < -87.0f ? Rf{} : result;
}
template <class Half>
ESPALIER_INLINE Twice<Half> exp(Twice<Half> x) {
  return {exp(x.low), exp(x.high)};
}

}  // namespace
}  // namespace espalier
