#include "prune/cuda/expert_products.h"

#include "kernels/cuda/calibration.h"

namespace espalier::cuda {

Status ExpertProducts::run(const DevicePart& part, std::vector<GemmGroup>& groups, const PartRows& input,
                           const int32_t* tokens, int64_t slots) {
  std::vector<const DeviceMatrix*> gate, up, down;
  for (const DeviceMlp& mlp : part.experts) {
    gate.push_back(&mlp.gate);
    up.push_back(&mlp.up);
    down.push_back(&mlp.down);
  }
  ESPALIER_TRY(products_.multiply(gate, groups, gate_groups_, input, tokens, activation_, slots));
  ESPALIER_TRY(products_.multiply(up, groups, up_groups_, input, tokens, up_, slots));
  const Result<PartRows> activation = part_rows(activation_parts_, slots, part.width);
  if (!activation.is_ok()) return activation.status();
  ESPALIER_TRY(gate_rows({.rows = slots,
                          .cols = part.width,
                          .gate = activation_.as<float>(),
                          .up = up_.as<float>(),
                          .out = activation.value()},
                         stream_));
  return products_.multiply(down, groups, down_groups_, activation.value(), nullptr, output_, slots);
}

}  // namespace espalier::cuda
