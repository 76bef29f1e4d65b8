// Stands before the toolkit's on the include path of emulated kernels: its types and calls, and C++ for the rest.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline
#undef __noinline__
#define __noinline__
#define __CUDA_ARCH_FEAT_SM90_ALL

#include "emulated/intrinsics.h"

namespace emulated {

LaunchConfig describe_launch(const cudaLaunchConfig_t& config);
// Runs a kernel, or notes it where the stream is captured.
cudaError_t start(cudaStream_t stream, const LaunchConfig& config, std::function<void()> body);

}  // namespace emulated

template <class... Parameters, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Args&&... args) {
  return emulated::start(config->stream, emulated::describe_launch(*config), [=] { kernel(args...); });
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute attribute, int value) {
  const bool fits = attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value <= emulated::kSharedBytes;
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  *attributes = {};
  attributes->sharedSizeBytes = 8192;  // more than any kernel's variables take
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, Kernel*, const cudaLaunchConfig_t* config) {
  *count = emulated::describe_launch(*config).resident_clusters();
  return cudaSuccess;
}
