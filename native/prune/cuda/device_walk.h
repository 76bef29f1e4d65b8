// SparseGPT on a GPU: the factor of one site in float64, and the walk over the matrices that read it.
#pragma once

#include <vector>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/triangular_inverse.h"
#include "prune/prune_matrix.h"

namespace espalier::cuda {

// Keeps its memory from site to site: 8 · width² bytes for the factor, 4 a weight for a matrix and as many on the host.
class DeviceWalk final : public SparseGptWalk {
 public:
  DeviceWalk(int device, ThreadPool& pool, cudaStream_t stream) : device_(device), pool_(pool), stream_(stream) {}

  // Whether a plan's walk is made here: SparseGPT that chooses and does not round, in blocks of at most kWalked
  // columns.
  static bool takes(const MethodPlan& plan);

  // The factor of the inverse of this H, task.out aside; false where it is not positive definite. kOutOfMemory.
  Result<bool> factor(HessianTask task);
  // Columns of the site that no token activated: their weights become zero.
  void set_dead(std::vector<int64_t> dead) { dead_ = std::move(dead); }

  // `plan` must be one that takes() is true of. The same bytes for any number of threads.
  Status prune(const SparseGptPlan& plan, float* weights, int64_t rows) override;

 private:
  Status walk(const SparseGptPlan& plan, int64_t rows);

  int device_;
  ThreadPool& pool_;
  cudaStream_t stream_;
  int64_t columns_ = 0;  // of the site
  std::vector<int64_t> dead_;
  PinnedMemory host_;
  DeviceMemory factor_;  // double [n][n], n = blocked_width(columns): U, columns and rows in reverse order
  DeviceMemory work_, failed_;
  DeviceMemory weights_, errors_, block_, right_, rank_work_, threshold_;
};

}  // namespace espalier::cuda
