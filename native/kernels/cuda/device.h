// What GPUs there are, and why they are not used where they are not. Works in every build, with or without CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"

namespace espalier::cuda {

struct Device {
  int number = 0;  // among all that CUDA sees
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int64_t memory = 0;  // bytes
};

struct DeviceSurvey {
  // Whether the kernels are in this build.
  bool compiled = false;
  // Devices that the kernels run on: compute capability 9.0 or newer.
  std::vector<Device> devices;
  // Why there are none; empty where there are.
  std::string reason;
  // Where there are devices: whether cuBLASLt is found for their dense products, and its version and file or why not.
  bool has_cublaslt = false;
  std::string cublaslt;
};

// Starts the driver at its first call, where there is one.
DeviceSurvey survey_devices();

// kDevice, which says why, if the kernels do not run on CUDA's device of that number.
Status check_device(int number);

// The devices of these numbers, or all that the kernels run on if there are no numbers. kDevice if there are none;
// kUsage for a number that is there twice.
Result<std::vector<int>> choose_devices(const std::vector<int>& numbers);

}  // namespace espalier::cuda
