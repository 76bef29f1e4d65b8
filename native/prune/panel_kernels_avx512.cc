#include "prune/panel_kernels_impl.h"

namespace espalier {

const PanelKernelSet kPanelKernelsAvx512 = make_panel_kernels<64, 12>();

}  // namespace espalier
