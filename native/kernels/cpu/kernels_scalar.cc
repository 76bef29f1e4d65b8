// The reference set: what the baseline instruction set of the target gives.
#include "core/dtype.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

constexpr int kTokenBlock = 2;
constexpr int kIntTokenBlock = 2;

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

ESPALIER_INLINE Vu expand8(uint64_t mask, const uint8_t* bytes) {
  uint8_t lanes[64];
  for (int i = 0; i < 64; ++i) {
    const bool kept = ((mask >> i) & 1u) != 0;
    lanes[i] = kept ? *bytes : 128;
    bytes += kept;
  }
  Vu v;
  __builtin_memcpy(&v, lanes, sizeof v);
  return v;
}

ESPALIER_INLINE Vu expand_nibbles(uint64_t mask, const uint8_t* bytes, int shift) {
  uint8_t lanes[64];
  for (int i = 0; i < 64; ++i) {
    const bool kept = ((mask >> i) & 1u) != 0;
    lanes[i] = kept ? static_cast<uint8_t>(*bytes << shift & 0xf0) : 128;
    bytes += kept;
  }
  Vu v;
  __builtin_memcpy(&v, lanes, sizeof v);
  return v;
}

ESPALIER_INLINE Vf load_f16(const uint16_t* halves) {
  float lanes[kVectorFloats];
  for (int i = 0; i < kVectorFloats; ++i) lanes[i] = f16_to_float(halves[i]);
  return load(lanes);
}

}  // namespace
}  // namespace espalier

#include "kernels/cpu/matmul_sparse_int_inl.h"
#include "kernels/cpu/table_inl.h"

namespace espalier {

const CpuKernels* scalar_kernels() {
  static constexpr CpuKernels kernels = make_table(Isa::kScalar, sparse_int8, sparse_int4);
  return &kernels;
}

}  // namespace espalier
