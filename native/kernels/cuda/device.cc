#include "kernels/cuda/device.h"

namespace espalier::cuda {

Status check_device(int number) {
  const DeviceSurvey survey = survey_devices();
  std::string usable;
  for (const Device& device : survey.devices) {
    if (device.number == number) return Status::ok();
    usable += (usable.empty() ? "" : ", ") + std::to_string(device.number) + " (" + device.name + ")";
  }
  if (survey.devices.empty()) return {Code::kDevice, "no GPU can be used: " + survey.reason};
  return {Code::kDevice, "there is no GPU " + std::to_string(number) + " that can be used; there is " + usable};
}

}  // namespace espalier::cuda
