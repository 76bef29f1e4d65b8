// NEON with the dot products of Armv8.2 (compiled with +dotprod).
#include <arm_neon.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

// A vector is four registers of the 32: two tokens' even and odd sums fill half of them, four tokens' integer sums too.
constexpr int kTokenBlock = 2;
constexpr int kIntTokenBlock = 4;

// For each 8-bit mask, the byte shuffle that moves packed values of kBytes bytes to the places of the set bits. An
// index of 0x80 gives zero, and still does with a few values added to it.
template <int kBytes>
struct ExpandTable {
  alignas(16) uint8_t shuffle[256][8 * kBytes];

  constexpr ExpandTable() : shuffle() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const bool kept = ((mask >> lane) & 1) != 0;
        for (int byte = 0; byte < kBytes; ++byte) shuffle[mask][lane * kBytes + byte] = kept ? next++ : 0x80;
      }
    }
  }
};
constexpr ExpandTable<1> kExpand8;
constexpr ExpandTable<2> kExpand16;

// Byte i: set bits in the bytes 0 … i of the mask. Taken at once, so that no load of values waits for the one before.
ESPALIER_INLINE uint64_t running_counts(uint64_t mask) {
  const uint64_t counts = vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(mask))), 0);
  return counts * 0x0101010101010101u;
}

ESPALIER_INLINE Vu expand(uint32_t mask, const uint16_t* values) {
  // Byte i: values before those of byte i.
  const uint64_t before = running_counts(mask) << 8;
  uint8x16_t parts[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint16_t* packed = values + ((before >> (8 * i)) & 0xffu);
    parts[i] =
        vqtbl1q_u8(vreinterpretq_u8_u16(vld1q_u16(packed)), vld1q_u8(kExpand16.shuffle[(mask >> (8 * i)) & 0xffu]));
  }
  Vu v;
  __builtin_memcpy(&v, parts, sizeof v);
  return v;
}

ESPALIER_INLINE Vi start(int32_t) { return Vi{}; }

ESPALIER_INLINE Vi dot(Vi sum, Vu bytes, const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(four));
  const Vu q = bytes ^ 0x80808080u;
  int8x16_t weights[4];
  int32x4_t sums[4];
  __builtin_memcpy(weights, &q, sizeof weights);
  __builtin_memcpy(sums, &sum, sizeof sums);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) sums[i] = vdotq_s32(sums[i], weights[i], inputs);
  __builtin_memcpy(&sum, sums, sizeof sum);
  return sum;
}

// Sixteen stored bytes at a time, read through `load`, to the places of the set bits; zero elsewhere.
template <class Load>
ESPALIER_INLINE Vu expand_bytes(uint64_t mask, const uint8_t* bytes, Load&& load_packed) {
  const uint64_t counts = running_counts(mask);
  uint8x16_t parts[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint64_t before = i == 0 ? 0 : (counts >> (16 * i - 8)) & 0xffu;
    const auto in_low = static_cast<uint8_t>(((counts >> (16 * i)) & 0xffu) - before);
    const uint8x8_t low = vld1_u8(kExpand8.shuffle[(mask >> (16 * i)) & 0xffu]);
    const uint8x8_t high = vld1_u8(kExpand8.shuffle[(mask >> (16 * i + 8)) & 0xffu]);
    parts[i] = vqtbl1q_u8(load_packed(bytes + before), vcombine_u8(low, vadd_u8(high, vdup_n_u8(in_low))));
  }
  Vu v;
  __builtin_memcpy(&v, parts, sizeof v);
  return v;
}

// As signed bytes zero is zero; the exclusive or cancels with that of `dot`.
ESPALIER_INLINE Vu expand8(uint64_t mask, const uint8_t* bytes) {
  return expand_bytes(
             mask, bytes,
             [](const uint8_t* p) __attribute__((always_inline)) { return veorq_u8(vld1q_u8(p), vdupq_n_u8(0x80)); }) ^
         0x80808080u;
}

ESPALIER_INLINE Vu expand_nibbles(uint64_t mask, const uint8_t* bytes, bool low) {
  return expand_bytes(
             mask, bytes,
             [low](const uint8_t* p) __attribute__((always_inline)) {
               const uint8x16_t loaded = vld1q_u8(p);
               const uint8x16_t nibbles = low ? vshlq_n_u8(loaded, 4) : vandq_u8(loaded, vdupq_n_u8(0xf0));
               return veorq_u8(nibbles, vdupq_n_u8(0x80));
             }) ^
         0x80808080u;
}

ESPALIER_INLINE Vf load_f16(const uint16_t* halves) {
  float32x4_t parts[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) parts[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + 4 * i)));
  Vf v;
  __builtin_memcpy(&v, parts, sizeof v);
  return v;
}

}  // namespace
}  // namespace espalier

#include "kernels/cpu/matmul_sparse_int_inl.h"
#include "kernels/cpu/table_inl.h"

namespace espalier {

const CpuKernels* neon_kernels() {
  static constexpr CpuKernels kernels = make_table(Isa::kNeon, sparse_int8, sparse_int4);
  return &kernels;
}

}  // namespace espalier
