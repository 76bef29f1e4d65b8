// 64-byte vectors for the tile packer. Included only by files that are compiled once for each instruction set, so
// everything here has internal linkage.
#pragma once

#include <cstdint>

// No fused a · b + c: the scales that packing finds must not depend on the instruction set.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

namespace espalier {
namespace {

typedef float Vf __attribute__((vector_size(64)));
typedef int32_t Vi __attribute__((vector_size(64)));
typedef uint32_t Vu __attribute__((vector_size(64)));
typedef uint8_t Vb __attribute__((vector_size(64)));

#define ESPALIER_TILE_INLINE inline __attribute__((always_inline))

// Where a row's elements begin in the mask of a vector: two of bf16 in 32 bits, four bytes in each half of 64.
constexpr Vu kPairShift = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
constexpr Vu kFourShift = {0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28};

// out[w] lane r = in[r · stride + w] for 16 rows of 16 words.
ESPALIER_TILE_INLINE void transpose(const uint32_t* in, int stride, Vu* out) {
  uint32_t columns[16][16];
  for (int w = 0; w < 16; ++w) {
    for (int r = 0; r < 16; ++r) columns[w][r] = in[r * stride + w];
  }
  __builtin_memcpy(static_cast<void*>(out), columns, sizeof columns);
}

}  // namespace
}  // namespace espalier
