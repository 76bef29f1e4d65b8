#include "prune/panel_kernels_impl.h"

namespace espalier {

const PanelKernelSet kPanelKernelsAvx2 = make_panel_kernels<32, 6>();

}  // namespace espalier
