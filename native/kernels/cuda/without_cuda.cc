// Stands for the CUDA sources in builds without nvcc.
#include "kernels/cuda/device.h"

namespace espalier::cuda {

DeviceSurvey survey_devices() { return {false, {}, "this addon was built without CUDA, as nvcc was not found"}; }

}  // namespace espalier::cuda
