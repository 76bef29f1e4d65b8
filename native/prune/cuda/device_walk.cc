#include "prune/cuda/device_walk.h"

#include <algorithm>

#include "kernels/cuda/rank_search.h"
#include "kernels/cuda/sparsegpt.h"
#include "prune/cuda/parallel_copy.h"

namespace espalier::cuda {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));
constexpr auto kDoubleBytes = static_cast<int64_t>(sizeof(double));

int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

}  // namespace

bool DeviceWalk::takes(const MethodPlan& plan) {
  return plan.update == Update::kSparseGpt && plan.comparison == Comparison::kBlock && !is_quantised(plan.values) &&
         block_width({.budget = plan.budget, .block = plan.block}) <= kWalked;
}

Result<bool> DeviceWalk::factor(HessianTask task) {
  columns_ = task.width;
  const int64_t n = blocked_width(columns_);
  const auto make_room = [&]() -> Status {
    ESPALIER_TRY(factor_.ensure(n * n * kDoubleBytes));
    return work_.ensure(inverse_work(n) * kDoubleBytes);
  };
  if (const Status room = make_room(); !room.is_ok()) {
    return Status(room.code(), "the inverse of the Gram matrix of " + std::to_string(columns_) +
                                   " input columns: " + room.message() +
                                   "; choose a method without weight update, or prune on the CPU (device: cpu)");
  }
  ESPALIER_TRY(failed_.ensure(sizeof(int32_t)));
  ESPALIER_CUDA_TRY(cudaMemsetAsync(failed_.data(), 0, sizeof(int32_t), stream_));
  task.out = factor_.as<double>();
  ESPALIER_TRY(fill_hessian(task, stream_));
  ESPALIER_TRY(invert_cholesky(task.out, n, work_.as<double>(), failed_.as<int32_t>(), stream_));
  int32_t failed = 0;
  ESPALIER_CUDA_TRY(cudaMemcpyAsync(&failed, failed_.data(), sizeof failed, cudaMemcpyDeviceToHost, stream_));
  ESPALIER_CUDA_TRY(cudaStreamSynchronize(stream_));
  return failed == 0;
}

Status DeviceWalk::prune(const SparseGptPlan& plan, float* weights, int64_t rows) {
  ESPALIER_CUDA_TRY(cudaSetDevice(device_));
  for (int64_t r = 0; r < rows; ++r) {
    for (const int64_t j : dead_) weights[r * columns_ + j] = 0.0f;
  }
  const int64_t bytes = rows * columns_ * kFloatBytes;
  ESPALIER_TRY(host_.ensure(bytes));
  ESPALIER_TRY(weights_.ensure(bytes));
  parallel_copy(pool_, weights, host_.as<float>(), rows * columns_);
  ESPALIER_CUDA_TRY(
      cudaMemcpyAsync(weights_.data(), host_.as<void>(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_));
  const Status walked = walk(plan, rows);
  // The memory of what was started is not freed before it ended.
  const Status copied = to_status(
      cudaMemcpyAsync(host_.as<void>(), weights_.data(), static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
      "cudaMemcpyAsync");
  const Status ended = to_status(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  ESPALIER_TRY(walked);
  ESPALIER_TRY(copied);
  ESPALIER_TRY(ended);
  parallel_copy(pool_, host_.as<float>(), weights, rows * columns_);
  return Status::ok();
}

Status DeviceWalk::walk(const SparseGptPlan& plan, int64_t rows) {
  const bool is_grouped = plan.budget.is_grouped();
  const int64_t step = std::min(block_width(plan), columns_);
  ESPALIER_TRY(errors_.ensure(rounded_up(rows, kDoubleRows) * kWalked * kDoubleBytes));
  ESPALIER_TRY(block_.ensure((kWalked + 1) * kWalked * kFloatBytes));
  ESPALIER_TRY(right_.ensure(kWalked * rounded_up(columns_, kDoubleCols) * kDoubleBytes));
  ESPALIER_TRY(threshold_.ensure(kFloatBytes));
  ESPALIER_TRY(rank_work_.ensure(kRankWork));
  ESPALIER_CUDA_TRY(cudaMemsetAsync(rank_work_.data(), 0, kRankWork, stream_));
  for (int64_t first = 0; first < columns_; first += step) {
    const int64_t width = std::min(step, columns_ - first);
    const int64_t next = first + width;
    float* weights = weights_.as<float>() + first;
    const WalkBlock block{.factor = block_.as<float>(),
                          .inverse = block_.as<float>() + kWalked * kWalked,
                          .right = right_.as<double>(),
                          .right_stride = rounded_up(columns_ - next, kDoubleCols)};
    ESPALIER_TRY(take_block({.reversed = factor_.as<double>(),
                             .n = blocked_width(columns_),
                             .columns = columns_,
                             .first = first,
                             .width = width,
                             .out = block},
                            stream_));
    if (!is_grouped) {
      ESPALIER_TRY(select_rank({.weights = weights,
                                .rows = rows,
                                .cols = width,
                                .stride = columns_,
                                .scales = block.inverse,
                                .rank = pruned_count(plan.budget.sparsity, rows * width) - 1,
                                .work = rank_work_.data(),
                                .value = threshold_.as<float>()},
                               stream_));
    }
    ESPALIER_TRY(walk_block({.weights = weights,
                             .stride = columns_,
                             .rows = rows,
                             .width = width,
                             .block = block,
                             .threshold = threshold_.as<float>(),
                             .keep = static_cast<int32_t>(plan.budget.keep),
                             .group = static_cast<int32_t>(plan.budget.group),
                             .errors = errors_.as<double>()},
                            stream_));
    ESPALIER_TRY(gemm_double({.a = errors_.as<double>(),
                              .a_stride = kWalked,
                              .b = block.right,
                              .b_stride = block.right_stride,
                              .c = weights + width,
                              .c_stride = columns_,
                              .rows = rows,
                              .cols = columns_ - next,
                              .accumulate = true},
                             stream_));
  }
  return Status::ok();
}

}  // namespace espalier::cuda
