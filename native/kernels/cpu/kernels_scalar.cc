// The reference set: what the baseline instruction set of the target gives.
#include "core/dtype.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

constexpr int kTokenBlock = 2;
constexpr int kIntTokenBlock = 2;

ESPALIER_INLINE Vi start(int32_t) { return Vi{}; }

ESPALIER_INLINE Vi dot(Vi sum, Vu bytes, const int8_t* x) {
  uint8_t lanes[64];
  int32_t sums[16];
  __builtin_memcpy(lanes, &bytes, sizeof lanes);
  __builtin_memcpy(sums, &sum, sizeof sums);
  for (int r = 0; r < 16; ++r) {
    for (int i = 0; i < 4; ++i) sums[r] += (lanes[4 * r + i] - 128) * x[i];
  }
  __builtin_memcpy(&sum, sums, sizeof sum);
  return sum;
}

ESPALIER_INLINE Vf load_f16(const uint16_t* halves) {
  float lanes[kVectorFloats];
  for (int i = 0; i < kVectorFloats; ++i) lanes[i] = f16_to_float(halves[i]);
  return load(lanes);
}

}  // namespace
}  // namespace espalier

#include "kernels/cpu/table_inl.h"

namespace espalier {

const CpuKernels* scalar_kernels() {
  // Expanding weights one at a time takes forty times as long as reading them dense.
  static constexpr CpuKernels kernels = make_table(Isa::kScalar, {});
  return &kernels;
}

}  // namespace espalier
