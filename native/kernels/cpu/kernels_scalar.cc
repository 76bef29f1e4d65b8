// The reference set: what the baseline instruction set of the target gives.
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

constexpr int kTokenBlock = 2;

ESPALIER_INLINE Vu expand(uint32_t mask, const uint16_t* values) {
  uint16_t lanes[32];
  for (int i = 0; i < 32; ++i) {
    const uint32_t kept = (mask >> i) & 1u;
    lanes[i] = kept ? *values : 0;
    values += kept;
  }
  Vu v;
  __builtin_memcpy(&v, lanes, sizeof v);
  return v;
}

}  // namespace
}  // namespace espalier

#include "kernels/cpu/matmul_inl.h"
#include "kernels/cpu/rows_inl.h"

namespace espalier {

const CpuKernels* scalar_kernels() {
  static constexpr CpuKernels kernels = {
      .isa = Isa::kScalar,
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
