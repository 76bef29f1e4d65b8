// What the products want of an instruction set, in AVX-512 with VBMI2, VNNI and GFNI; shared by the sets that have it.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

constexpr int kTokenBlock = 8;
constexpr int kIntTokenBlock = 8;

ESPALIER_INLINE Vu expand(uint32_t mask, const uint16_t* values) {
  return reinterpret_cast<Vu>(_mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(values)));
}

// Bytes are unsigned here: what 128 too much adds is taken off at the start.
ESPALIER_INLINE Vi start(int32_t sum) { return Vi{} - 128 * sum; }

ESPALIER_INLINE Vi dot(Vi sum, Vu bytes, const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  return reinterpret_cast<Vi>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(bytes), _mm512_set1_epi32(four)));
}

ESPALIER_INLINE Vu expand8(uint64_t mask, const uint8_t* bytes) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(0x80));
  return reinterpret_cast<Vu>(_mm512_mask_expand_epi8(zero, mask, _mm512_loadu_si512(bytes)));
}

ESPALIER_INLINE Vu expand_nibbles(uint64_t mask, const uint8_t* bytes, int shift) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i loaded = _mm512_loadu_si512(bytes);
  // A matrix of bits that puts bits 0 to 3 of a byte in the places of 4 to 7, and zeros in theirs.
  const __m512i raise = _mm512_set1_epi64(0x01020408);
  const __m512i nibbles = shift == 0 ? _mm512_and_si512(loaded, _mm512_set1_epi8(static_cast<char>(0xf0)))
                                     : _mm512_gf2p8affine_epi64_epi8(loaded, raise, 0);
  return reinterpret_cast<Vu>(_mm512_mask_expand_epi8(zero, mask, nibbles));
}

ESPALIER_INLINE Vf load_f16(const uint16_t* halves) {
  return reinterpret_cast<Vf>(
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves))));
}

}  // namespace
}  // namespace espalier
