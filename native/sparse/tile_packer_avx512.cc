// AVX-512 with VBMI2 (compiled with those flags).
#include <immintrin.h>

#include "sparse/tile_vector.h"

namespace espalier {
namespace {

__m512i bits_of(Vu v) { return reinterpret_cast<__m512i>(v); }

uint32_t nonzero16(Vu v) { return _mm512_test_epi16_mask(bits_of(v), bits_of(v)); }
uint64_t nonzero8(Vu v) { return _mm512_test_epi8_mask(bits_of(v), bits_of(v)); }

Vu compress16(uint32_t mask, Vu v) { return reinterpret_cast<Vu>(_mm512_maskz_compress_epi16(mask, bits_of(v))); }
Vu compress8(uint8_t fill, uint64_t mask, Vu v) {
  return reinterpret_cast<Vu>(_mm512_mask_compress_epi8(_mm512_set1_epi8(static_cast<char>(fill)), mask, bits_of(v)));
}

// The masked forms, because g++ 12 warns of its own plain ones.
__m256i to_f16(Vf v) { return _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT); }
Vf round_to_f16(Vf v) { return reinterpret_cast<Vf>(_mm512_maskz_cvtph_ps(0xffff, to_f16(v))); }
void store_f16(uint16_t* out, Vf v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), to_f16(v)); }

}  // namespace
}  // namespace espalier

#include "sparse/tile_packer_inl.h"

namespace espalier {

const TilePacker* avx512_tile_packer() { return &kTilePacker; }

}  // namespace espalier
