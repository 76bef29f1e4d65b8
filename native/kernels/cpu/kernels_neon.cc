// NEON with the dot products of Armv8.2 (compiled with +dotprod).
#include <arm_neon.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

// A vector is four registers of the 32: two tokens' even and odd sums fill half of them, four tokens' integer sums too.
constexpr int kTokenBlock = 2;
constexpr int kIntTokenBlock = 4;

// For each 8-bit mask, the byte shuffle that moves packed 16-bit values to the places of the set bits (0x80: zero).
struct ExpandTable {
  alignas(16) uint8_t shuffle[256][16];

  constexpr ExpandTable() : shuffle() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int lane = 0; lane < 16; ++lane) {
        const bool kept = ((mask >> (lane / 2)) & 1) != 0;
        shuffle[mask][lane] = kept ? next++ : 0x80;
      }
    }
  }
};
constexpr ExpandTable kExpand;

// Byte i: set bits in the bytes 0 … i of the mask. All at once, so that no load of values waits for the one before.
ESPALIER_INLINE uint32_t running_counts(uint32_t mask) {
  const uint32_t counts = vget_lane_u32(vreinterpret_u32_u8(vcnt_u8(vcreate_u8(mask))), 0);
  return counts * 0x01010101u;
}

ESPALIER_INLINE Vu as_vector(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
  return {{reinterpret_cast<Ru>(a), reinterpret_cast<Ru>(b)}, {reinterpret_cast<Ru>(c), reinterpret_cast<Ru>(d)}};
}

ESPALIER_INLINE Vu expand(uint32_t mask, const uint16_t* values) {
  // Byte i: values before those of byte i of the mask.
  const uint32_t before = running_counts(mask) << 8;
  const auto part = [&](int i) __attribute__((always_inline)) {
    const uint16_t* packed = values + ((before >> (8 * i)) & 0xffu);
    const uint8x16_t shuffle = vld1q_u8(kExpand.shuffle[(mask >> (8 * i)) & 0xffu]);
    return vqtbl1q_u8(vreinterpretq_u8_u16(vld1q_u16(packed)), shuffle);
  };
  return as_vector(part(0), part(1), part(2), part(3));
}

ESPALIER_INLINE Vi start(int32_t) { return Vi{}; }

ESPALIER_INLINE Vi dot(Vi sum, Vu bytes, const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(four));
  const Vu q = bytes ^ 0x80808080u;
  const auto part = [&](Ri total, Ru weights) __attribute__((always_inline)) {
    return static_cast<Ri>(vdotq_s32(total, reinterpret_cast<int8x16_t>(weights), inputs));
  };
  return {{part(sum.low.low, q.low.low), part(sum.low.high, q.low.high)},
          {part(sum.high.low, q.high.low), part(sum.high.high, q.high.high)}};
}

ESPALIER_INLINE Vf load_f16(const uint16_t* halves) {
  const auto part = [&](int i) __attribute__((always_inline)) {
    return static_cast<Rf>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + 4 * i))));
  };
  return {{part(0), part(1)}, {part(2), part(3)}};
}

}  // namespace
}  // namespace espalier

#include "kernels/cpu/matmul_sparse_inl.h"
#include "kernels/cpu/table_inl.h"

namespace espalier {

const CpuKernels* neon_kernels() {
  // Sparse int8 and int4 are not taken: expanding bytes through a table takes three times the instructions of reading
  // them dense, which gains only where a core gets little of the memory. Not measured.
  static constexpr CpuKernels kernels = make_table(Isa::kNeon, {.bf16 = sparse_bf16});
  return &kernels;
}

}  // namespace espalier
