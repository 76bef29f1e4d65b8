#include "prune/cuda/layer_products.h"

namespace espalier::cuda {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));

}  // namespace

Status LayerProducts::multiply(const DeviceMatrix& matrix, const PartRows& x, int64_t rows, DeviceMemory& y) {
  std::vector<GemmGroup> group = {
      {.weights = matrix.memory.as<uint16_t>(), .first_row = 0, .rows = static_cast<int32_t>(rows)}};
  const int32_t tiles = place_tiles(group, matrix.rows);
  ESPALIER_TRY(send_list(group, one_group_, stream_));
  ESPALIER_TRY(y.ensure(rows * matrix.rows * kFloatBytes));
  return gemm({.groups = one_group_.as<GemmGroup>(),
               .group_count = 1,
               .tiles = tiles,
               .x = x.data,
               .depth = part_stride(matrix.cols),
               .cols = static_cast<int32_t>(matrix.rows),
               .weight_parts = matrix.parts,
               .y = y.as<float>()},
              stream_);
}

Status LayerProducts::multiply(const std::vector<const DeviceMatrix*>& matrices, std::vector<GemmGroup>& groups,
                               DeviceMemory& device, const PartRows& x, const int32_t* rows, DeviceMemory& y,
                               int64_t slots) {
  const DeviceMatrix& first = *matrices.front();
  for (size_t e = 0; e < groups.size(); ++e) {
    if (matrices[e]->parts != first.parts) {
      return {Code::kUsage, "experts of one layer have different element types: prune on the CPU (device: cpu)"};
    }
    groups[e].weights = matrices[e]->memory.as<uint16_t>();
  }
  const int32_t tiles = place_tiles(groups, first.rows);
  ESPALIER_TRY(send_list(groups, device, stream_));
  ESPALIER_TRY(y.ensure(slots * first.rows * kFloatBytes));
  return gemm({.groups = device.as<GemmGroup>(),
               .group_count = static_cast<int32_t>(groups.size()),
               .tiles = tiles,
               .x = x.data,
               .rows = rows,
               .depth = part_stride(first.cols),
               .cols = static_cast<int32_t>(first.rows),
               .weight_parts = first.parts,
               .y = y.as<float>()},
              stream_);
}

}  // namespace espalier::cuda
