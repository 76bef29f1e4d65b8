// Warp-wide products on the tensor cores: float32 sums, bf16 operands.
#pragma once

#include <cstdint>

namespace espalier::cuda::ptx {

// c += a · b for a 16 × 16 and b 16 × 8.
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a · b for a 16 × 32 of which two in four are stored, and b 32 × 8. Lanes 2 · kSelector and 2 · kSelector + 1 of
// each four give the positions.
template <int kSelector>
__device__ __forceinline__ void mma_sparse_m16n8k32(float (&c)[4], const uint4& a, const uint4& b, uint32_t positions) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(positions), "n"(kSelector));
}

// Four 8 × 8 matrices of 16-bit elements: lane 8i + r says where row r of matrix i lies, and lane 4g + t gets of each
// the elements 2t and 2t + 1 of row g.
__device__ __forceinline__ uint4 load_matrices(uint32_t row) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(row)
               : "memory");
  return m;
}
// The same of their transposes.
__device__ __forceinline__ uint4 load_transposed(uint32_t row) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(row)
               : "memory");
  return m;
}

}  // namespace espalier::cuda::ptx
