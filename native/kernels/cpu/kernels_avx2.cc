// AVX2, FMA, F16C and BMI2 (compiled with those flags).
#include <immintrin.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

constexpr int kTokenBlock = 2;
constexpr int kIntTokenBlock = 2;

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

// Eight values.
ESPALIER_INLINE __m128i expand_byte(uint32_t byte, const uint16_t*& values) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  values += __builtin_popcount(byte);
  return _mm_shuffle_epi8(packed, _mm_load_si128(reinterpret_cast<const __m128i*>(kExpand.shuffle[byte])));
}

ESPALIER_INLINE Ru expand_half(uint32_t mask, const uint16_t*& values) {
  const __m128i low = expand_byte(mask & 0xffu, values);
  const __m128i high = expand_byte((mask >> 8) & 0xffu, values);
  return reinterpret_cast<Ru>(_mm256_set_m128i(high, low));
}

ESPALIER_INLINE Vu expand(uint32_t mask, const uint16_t* values) {
  const Ru low = expand_half(mask, values);
  return {low, expand_half(mask >> 16, values)};
}

ESPALIER_INLINE Vi start(int32_t) { return Vi{}; }

// |q| · sign(q) x in pairs fits 16 bits: 2 · 128 · 127 < 2¹⁵.
ESPALIER_INLINE Ri dot_half(Ri sum, Ru bytes, __m256i inputs) {
  const __m256i q = _mm256_xor_si256(reinterpret_cast<__m256i>(bytes), _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(inputs, q));
  return sum + reinterpret_cast<Ri>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

ESPALIER_INLINE Vi dot(Vi sum, Vu bytes, const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  const __m256i inputs = _mm256_set1_epi32(four);
  return {dot_half(sum.low, bytes.low, inputs), dot_half(sum.high, bytes.high, inputs)};
}

ESPALIER_INLINE Vf load_f16(const uint16_t* halves) {
  const auto* at = reinterpret_cast<const __m128i*>(halves);
  return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}

}  // namespace
}  // namespace espalier

#include "kernels/cpu/matmul_sparse_inl.h"
#include "kernels/cpu/table_inl.h"

namespace espalier {

const CpuKernels* avx2_kernels() {
  // Sparse int8 and int4 are not taken: expanding bytes through a table is slower here than reading them dense.
  static constexpr CpuKernels kernels = make_table(Isa::kAvx2, {.bf16 = sparse_bf16});
  return &kernels;
}

}  // namespace espalier
