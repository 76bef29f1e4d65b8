// AVX2 and F16C (compiled with those flags).
#include <immintrin.h>

#include "sparse/tile_packer_plain.h"

namespace espalier {
namespace {

struct Halves {
  __m256i low;
  __m256i high;
};

Halves halves_of(Vu v) {
  Halves halves;
  __builtin_memcpy(&halves, &v, sizeof v);
  return halves;
}

// Bytes that are 0xff where a 16-bit lane is 0, in order.
uint32_t nonzero16(Vu v) {
  const Halves halves = halves_of(v);
  const __m256i zero = _mm256_setzero_si256();
  const __m256i packed =
      _mm256_packs_epi16(_mm256_cmpeq_epi16(halves.low, zero), _mm256_cmpeq_epi16(halves.high, zero));
  return ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(packed, 0xd8)));
}

uint64_t nonzero8(Vu v) {
  const Halves halves = halves_of(v);
  const __m256i zero = _mm256_setzero_si256();
  const auto low = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(halves.low, zero)));
  const auto high = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(halves.high, zero)));
  return ~(low | static_cast<uint64_t>(high) << 32);
}

Vu compress16(uint32_t mask, Vu v) { return compress_lanes<uint16_t>(0, mask, v); }
Vu compress8(uint8_t fill, uint64_t mask, Vu v) { return compress_lanes<uint8_t>(fill, mask, v); }

void store_f16(uint16_t* out, Vf v) {
  __m256 floats[2];
  __builtin_memcpy(floats, &v, sizeof v);
  for (int i = 0; i < 2; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8 * i), _mm256_cvtps_ph(floats[i], _MM_FROUND_TO_NEAREST_INT));
  }
}

Vf round_to_f16(Vf v) {
  __m256 floats[2];
  __builtin_memcpy(floats, &v, sizeof v);
  for (__m256& half : floats) half = _mm256_cvtph_ps(_mm256_cvtps_ph(half, _MM_FROUND_TO_NEAREST_INT));
  __builtin_memcpy(&v, floats, sizeof v);
  return v;
}

}  // namespace
}  // namespace espalier

#include "sparse/tile_packer_inl.h"

namespace espalier {

const TilePacker* avx2_tile_packer() { return &kTilePacker; }

}  // namespace espalier
