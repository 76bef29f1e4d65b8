// Baseline of the architecture: 16-byte vectors, in the 16 registers of SSE2 or the 32 of NEON.
#include "prune/panel_kernels_impl.h"

namespace espalier {

#if defined(__aarch64__)
const PanelKernelSet kPanelKernelsScalar = make_panel_kernels<16, 12>();
#else
const PanelKernelSet kPanelKernelsScalar = make_panel_kernels<16, 6>();
#endif

}  // namespace espalier
