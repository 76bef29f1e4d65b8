#include <cuda_runtime_api.h>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/device.h"

namespace espalier::cuda {
namespace {

constexpr int kOldestMajor = 9;

std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Why no device could be counted.
std::string explain(cudaError_t error) {
  if (error == cudaErrorNoDevice) return "the driver finds no NVIDIA GPU";
  if (error != cudaErrorInsufficientDriver) return cudaGetErrorString(error);
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return "no NVIDIA driver is loaded";
  return "the NVIDIA driver is for CUDA " + version_name(driver) + ", this build needs one for " +
         version_name(CUDART_VERSION) + " or newer";
}

}  // namespace

DeviceSurvey survey_devices() {
  DeviceSurvey survey;
  survey.compiled = true;
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  for (int i = 0; error == cudaSuccess && i < count; ++i) {
    cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, i);
    if (error != cudaSuccess) break;
    Device device{i, properties.name, properties.major, properties.minor,
                  static_cast<int64_t>(properties.totalGlobalMem)};
    if (device.major >= kOldestMajor) {
      survey.devices.push_back(device);
    } else {
      survey.reason = device.name + " has compute capability " + std::to_string(device.major) + "." +
                      std::to_string(device.minor) + ", the kernels need 9.0 or newer";
    }
  }
  if (error != cudaSuccess) {
    survey.reason = explain(error);
    cudaGetLastError();
  } else if (count == 0) {
    survey.reason = explain(cudaErrorNoDevice);
  }
  if (survey.devices.empty()) return survey;
  survey.reason.clear();
  const Result<CublasLt>& library = find_cublaslt();
  survey.has_cublaslt = library.is_ok();
  survey.cublaslt =
      library.is_ok() ? library.value().version + " in " + library.value().file : library.status().message();
  return survey;
}

}  // namespace espalier::cuda
