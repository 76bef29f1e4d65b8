// Starts kernels so that the next one's launch overlaps with the one that runs. Every kernel started so must call
// begin_kernel() before it touches memory.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/ptx/launch.cuh"

namespace espalier::cuda {

__device__ __forceinline__ void begin_kernel() {
  ptx::wait_for_previous();
  ptx::allow_next();
}

struct LaunchShape {
  dim3 grid;
  unsigned threads = 0;
  int64_t shared_bytes = 0;
};

template <class... Args>
Status launch(const char* name, void (*kernel)(Args...), const LaunchShape& shape, cudaStream_t stream, Args... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return to_status(cudaLaunchKernelEx(&config, kernel, args...), name);
}

}  // namespace espalier::cuda
