// From the CUDA runtime's errors to Status.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/status.h"

namespace espalier::cuda {

inline Status to_status(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return Status::ok();
  // An error that does not break the device is remembered for the next call that asks; it has been told here.
  cudaGetLastError();
  return Status(error == cudaErrorMemoryAllocation ? Code::kOutOfMemory : Code::kDevice,
                std::string(call) + " failed: " + cudaGetErrorString(error));
}

}  // namespace espalier::cuda

// Returns the Status of a call that failed; the message names the call.
#define ESPALIER_CUDA_TRY(call) ESPALIER_TRY(::espalier::cuda::to_status((call), #call))
