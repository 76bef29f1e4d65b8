// AVX2, FMA and BMI2 (compiled with those flags).
#include <immintrin.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

constexpr int kTokenBlock = 2;

// For each 8-bit mask, the byte shuffle that moves packed 16-bit values to the places of the set bits (0x80: zero).
struct ExpandTable {
  alignas(16) uint8_t shuffle[256][16];

  constexpr ExpandTable() : shuffle() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const bool kept = ((mask >> lane) & 1) != 0;
        shuffle[mask][2 * lane] = kept ? next : 0x80;
        shuffle[mask][2 * lane + 1] = kept ? static_cast<uint8_t>(next + 1) : 0x80;
        if (kept) next = static_cast<uint8_t>(next + 2);
      }
    }
  }
};
constexpr ExpandTable kExpand;

ESPALIER_INLINE Vu expand(uint32_t mask, const uint16_t* values) {
  __m128i parts[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = (mask >> (8 * i)) & 0xffu;
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    parts[i] = _mm_shuffle_epi8(packed, _mm_load_si128(reinterpret_cast<const __m128i*>(kExpand.shuffle[byte])));
    values += __builtin_popcount(byte);
  }
  Vu v;
  __builtin_memcpy(&v, parts, sizeof v);
  return v;
}

}  // namespace
}  // namespace espalier

#include "kernels/cpu/matmul_inl.h"
#include "kernels/cpu/rows_inl.h"

namespace espalier {

const CpuKernels* avx2_kernels() {
  static constexpr CpuKernels kernels = {
      .isa = Isa::kAvx2,
      .dense_bf16 = dense_bf16,
      .bitmap_bf16 = sparse_bf16,
      .nm_bf16 = sparse_bf16,
      .dense_f32 = dense_f32,
      .rms_norm = rms_norm,
      .silu_multiply = silu_multiply,
      .softmax = softmax,
      .log_sum_exp = log_sum_exp,
      .axpy = axpy,
      .attend = attend,
  };
  return &kernels;
}

}  // namespace espalier
