// AVX-512 with VBMI2, VNNI and GFNI (compiled with those flags).
#include "kernels/cpu/avx512_inl.h"
#include "kernels/cpu/matmul_sparse_inl.h"
#include "kernels/cpu/matmul_sparse_int_inl.h"
#include "kernels/cpu/table_inl.h"

namespace espalier {

const CpuKernels* avx512_kernels() {
  static constexpr CpuKernels kernels = make_table(Isa::kAvx512, {sparse_bf16, sparse_int8, sparse_int4});
  return &kernels;
}

}  // namespace espalier
