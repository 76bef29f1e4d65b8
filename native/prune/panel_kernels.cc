#include "prune/panel_kernels.h"

#include "core/cpu_features.h"

namespace espalier {

const PanelKernelSet& panel_kernels() {
#if defined(__x86_64__)
  switch (cpu_features().selected) {
    case Isa::kAmx:
    case Isa::kAvx512: return kPanelKernelsAvx512;
    case Isa::kAvx2: return kPanelKernelsAvx2;
    case Isa::kNeon:
    case Isa::kScalar: break;
  }
#endif
  return kPanelKernelsScalar;
}

}  // namespace espalier
