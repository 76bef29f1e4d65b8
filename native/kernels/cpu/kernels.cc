#include "kernels/cpu/kernels.h"

namespace espalier {

const CpuKernels* scalar_kernels();
const CpuKernels* avx2_kernels();
const CpuKernels* avx512_kernels();
const CpuKernels* amx_kernels();
const CpuKernels* neon_kernels();

const CpuKernels* cpu_kernels(Isa isa) {
  if (isa > cpu_features().best) return nullptr;
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return amx_kernels();
  if (isa == Isa::kAvx512) return avx512_kernels();
  if (isa == Isa::kAvx2) return avx2_kernels();
#elif defined(__aarch64__)
  if (isa == Isa::kNeon) return neon_kernels();
#endif
  return isa == Isa::kScalar ? scalar_kernels() : nullptr;
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels& selected = *cpu_kernels(cpu_features().selected);
  return selected;
}

}  // namespace espalier
