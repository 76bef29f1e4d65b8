// Products of a batch's rows by the matrices of a layer, and the small lists that kernels read.
#pragma once

#include <vector>

#include "kernels/cuda/gemm.h"
#include "prune/cuda/device_layer.h"

namespace espalier::cuda {

// Copies a list to the device for what is started next on the stream; it may be changed afterwards.
template <class T>
Status send_list(const std::vector<T>& list, DeviceMemory& to, cudaStream_t stream) {
  const auto bytes = static_cast<int64_t>(list.size() * sizeof(T));
  ESPALIER_TRY(to.ensure(bytes));
  return to_status(cudaMemcpyAsync(to.data(), list.data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream),
                   "cudaMemcpyAsync");
}

// Room for rows as parts, in memory that grows without keeping them.
inline Result<PartRows> part_rows(DeviceMemory& memory, int64_t rows, int64_t width) {
  const int stride = part_stride(width);
  ESPALIER_TRY(memory.ensure(rows * kGemmParts * stride * 2));
  return PartRows{memory.as<uint16_t>(), kGemmParts, stride};
}

class LayerProducts {
 public:
  explicit LayerProducts(cudaStream_t stream) : stream_(stream) {}

  // y [rows][matrix.rows] = x · matrixᵀ.
  Status multiply(const DeviceMatrix& matrix, const PartRows& x, int64_t rows, DeviceMemory& y);
  // Rows by those of the matrices, one for each of the groups, which are also left in `device`. kUsage where the
  // matrices have different element types.
  Status multiply(const std::vector<const DeviceMatrix*>& matrices, std::vector<GemmGroup>& groups,
                  DeviceMemory& device, const PartRows& x, const int32_t* rows, DeviceMemory& y, int64_t slots);

 private:
  cudaStream_t stream_;
  DeviceMemory one_group_;
};

}  // namespace espalier::cuda
