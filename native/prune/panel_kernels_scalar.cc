// Baseline of the architecture: 16-byte vectors (SSE2, NEON).
#include "prune/panel_kernels_impl.h"

namespace espalier {

const PanelKernelSet kPanelKernelsScalar = make_panel_kernels<16, 6>();

}  // namespace espalier
