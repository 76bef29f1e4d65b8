// Masks of pruning methods without weight update, chosen on a GPU.
#pragma once

#include "kernels/cuda/memory.h"
#include "prune/prune_matrix.h"

namespace espalier::cuda {

// Keeps its memory from matrix to matrix: 4 bytes a weight on the device and on the host.
class DeviceMasks final : public MatrixMasks {
 public:
  DeviceMasks(int device, ThreadPool& pool, cudaStream_t stream) : device_(device), pool_(pool), stream_(stream) {}

  // Takes every score that needs no update, in rows, n:m of up to kMostCompared columns, and under one threshold.
  Result<bool> apply(const MethodPlan& plan, const float* norms, float* weights, int64_t rows, int64_t cols) override;

 private:
  int device_;
  ThreadPool& pool_;
  cudaStream_t stream_;
  PinnedMemory host_;  // the weights, then the mask
  DeviceMemory weights_, norms_, shares_, kept_, rank_work_, threshold_;
};

}  // namespace espalier::cuda
