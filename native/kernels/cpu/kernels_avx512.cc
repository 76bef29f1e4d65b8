// AVX-512 with VBMI2 (compiled with those flags).
#include <immintrin.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

constexpr int kTokenBlock = 8;

ESPALIER_INLINE Vu expand(uint32_t mask, const uint16_t* values) {
  return reinterpret_cast<Vu>(_mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(values)));
}

}  // namespace
}  // namespace espalier

#include "kernels/cpu/matmul_inl.h"
#include "kernels/cpu/rows_inl.h"

namespace espalier {

const CpuKernels* avx512_kernels() {
  static constexpr CpuKernels kernels = {
      .isa = Isa::kAvx512,
      .dense_bf16 = dense_bf16,
      .bitmap_bf16 = sparse_bf16,
      .nm_bf16 = sparse_bf16,
      .dense_f32 = dense_f32,
      .rms_norm = rms_norm,
      .silu_multiply = silu_multiply,
      .softmax = softmax,
      .log_sum_exp = log_sum_exp,
      .axpy = axpy,
      .attend = attend,
  };
  return &kernels;
}

}  // namespace espalier
