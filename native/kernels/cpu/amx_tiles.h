// The matrix unit: eight tile registers of 16 rows × 64 bytes. The instructions are written out, because the compiler's
// own intrinsics do not say that they read and write memory, and stores before them are lost.
#pragma once

#include <cstdint>

#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

inline constexpr int kTileBytes = 1024;

template <int kRegister>
ESPALIER_INLINE void tile_load(const void* rows, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kRegister) : "memory");
}

// What is read once: it leaves L1 to what is read again.
template <int kRegister>
ESPALIER_INLINE void tile_stream(const void* rows, int64_t stride) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kRegister) : "memory");
}

template <int kRegister>
ESPALIER_INLINE void tile_store(void* rows, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(kRegister) : "memory");
}

template <int kRegister>
ESPALIER_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kRegister));
}

// kSum[m][n] += Σ_k kA[m][k] · kB[k / 2][2n + k % 2] over 32 bf16 inputs: even and odd k in a chain each, from zero,
// then added to each other and to the sum. Denormals count as zeros.
template <int kSum, int kA, int kB>
ESPALIER_INLINE void tile_dot_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

// kSum[m][n] += Σ_k kA[m][k] · kB[k / 4][4n + k % 4] over 64 signed bytes.
template <int kSum, int kA, int kB>
ESPALIER_INLINE void tile_dot_int8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

// While it lives, all eight registers of this thread are 16 rows × 64 bytes.
class TileUnit {
 public:
  TileUnit() {
    Shape shape;
    for (int i = 0; i < 8; ++i) {
      shape.row_bytes[i] = 64;
      shape.rows[i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shape) : "memory");
  }
  ~TileUnit() { __asm__ volatile("tilerelease" : : : "memory"); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

 private:
  struct alignas(64) Shape {
    uint8_t palette = 1;
    uint8_t first_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
  static_assert(sizeof(Shape) == 64);
};

}  // namespace
}  // namespace espalier
