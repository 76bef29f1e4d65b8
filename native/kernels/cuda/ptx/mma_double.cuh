// Warp-wide products on the tensor cores in float64.
#pragma once

namespace espalier::cuda::ptx {

// c += a · b for a 16 × 8 and b 8 × 8. Lane 4g + t has of a the rows g and g + 8 of column t, then of column t + 4; of
// b the column g of rows t and t + 4; of c the columns 2t and 2t + 1 of row g, then of row g + 8.
__device__ __forceinline__ void mma_m16n8k8(double (&c)[4], const double (&a)[4], double b0, double b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b0), "d"(b1));
}

}  // namespace espalier::cuda::ptx
