#include "kernels/cuda/device.h"

#include <algorithm>

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

Result<std::vector<int>> choose_devices(const std::vector<int>& numbers) {
  if (numbers.empty()) {
    std::vector<int> all;
    for (const Device& device : survey_devices().devices) all.push_back(device.number);
    if (all.empty()) return check_device(0);
    return all;
  }
  for (auto number = numbers.begin(); number != numbers.end(); ++number) {
    if (std::find(numbers.begin(), number, *number) != number) {
      return Status(Code::kUsage, "GPU " + std::to_string(*number) + " is named twice");
    }
    ESPALIER_TRY(check_device(*number));
  }
  return numbers;
}

}  // namespace espalier::cuda
