#pragma once

#include "emulated/matrices.h"

namespace espalier::cuda::ptx {

inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulated::mma_m16n8k16(c, a, b0, b1);
}
template <int kSelector>
void mma_sparse_m16n8k32(float (&c)[4], const uint4& a, const uint4& b, uint32_t positions) {
  emulated::mma_sparse_m16n8k32(c, a, b, positions, kSelector);
}
inline uint4 load_matrices(uint32_t row) { return emulated::load_matrices(row, false); }
inline uint4 load_transposed(uint32_t row) { return emulated::load_matrices(row, true); }

}  // namespace espalier::cuda::ptx
