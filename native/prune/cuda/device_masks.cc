#include "prune/cuda/device_masks.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/mask.h"
#include "kernels/cuda/rank_search.h"
#include "kernels/cuda/relative_scores.h"
#include "prune/cuda/parallel_copy.h"
#include "prune/score.h"

namespace espalier::cuda {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));
constexpr auto kDoubleBytes = static_cast<int64_t>(sizeof(double));
constexpr int64_t kMostCompared = 128;
constexpr int64_t kMostWeights = int64_t{1} << 32;

bool takes(const MethodPlan& plan, int64_t rows, int64_t cols) {
  if (plan.score == Score::kSecondOrder) return false;
  if (cols > kMostMaskedCols || rows * cols >= kMostWeights) return false;
  if (plan.budget.is_grouped()) return plan.budget.group <= kMostCompared;
  return plan.comparison == Comparison::kRow || plan.comparison == Comparison::kMatrix;
}

}  // namespace

Result<bool> DeviceMasks::apply(const MethodPlan& plan, const float* norms, float* weights, int64_t rows,
                                int64_t cols) {
  if (!takes(plan, rows, cols)) return false;
  ESPALIER_CUDA_TRY(cudaSetDevice(device_));
  const int64_t bytes = rows * cols * kFloatBytes;
  const int64_t words = mask_words(cols);
  const int64_t mask_bytes = rows * words * static_cast<int64_t>(sizeof(uint32_t));
  ESPALIER_TRY(host_.ensure(std::max(bytes, mask_bytes)));
  ESPALIER_TRY(weights_.ensure(bytes));
  ESPALIER_TRY(norms_.ensure(cols * kDoubleBytes));
  ESPALIER_TRY(kept_.ensure(mask_bytes));
  parallel_copy(pool_, weights, host_.as<float>(), rows * cols);
  const auto send = [&](const void* from, const DeviceMemory& to, int64_t size) {
    return to_status(cudaMemcpyAsync(to.data(), from, static_cast<size_t>(size), cudaMemcpyHostToDevice, stream_),
                     "cudaMemcpyAsync");
  };
  ESPALIER_TRY(send(host_.as<void>(), weights_, bytes));
  const bool is_relative = norms != nullptr && plan.score == Score::kRelative;
  if (is_relative) {
    const std::vector<double> lengths = relative_lengths(norms, cols, plan.power);
    ESPALIER_TRY(shares_.ensure((rows + cols) * kDoubleBytes));
    ESPALIER_TRY(send(lengths.data(), norms_, cols * kDoubleBytes));
    // What follows takes the scores for weights, by their magnitude.
    ESPALIER_TRY(score_relative({.weights = weights_.as<float>(),
                                 .rows = rows,
                                 .cols = cols,
                                 .lengths = norms_.as<double>(),
                                 .shares = shares_.as<double>()},
                                stream_));
  } else if (norms != nullptr) {
    ESPALIER_TRY(send(norms, norms_, cols * kFloatBytes));
  }
  const MaskTask task{.weights = weights_.as<float>(),
                      .rows = rows,
                      .cols = cols,
                      .scales = norms != nullptr && !is_relative ? norms_.as<float>() : nullptr,
                      .kept = kept_.as<uint32_t>()};
  const Budget& budget = plan.budget;
  if (budget.is_grouped()) {
    ESPALIER_TRY(mask_groups(task, static_cast<int32_t>(budget.keep), static_cast<int32_t>(budget.group), stream_));
  } else if (plan.comparison == Comparison::kRow) {
    ESPALIER_TRY(mask_rows(task, pruned_count(budget.sparsity, cols), stream_));
  } else {
    ESPALIER_TRY(rank_work_.ensure(kRankWork));
    ESPALIER_TRY(threshold_.ensure(kFloatBytes));
    ESPALIER_CUDA_TRY(cudaMemsetAsync(rank_work_.data(), 0, kRankWork, stream_));
    ESPALIER_TRY(select_rank({.weights = task.weights,
                              .rows = rows,
                              .cols = cols,
                              .stride = cols,
                              .scales = task.scales,
                              .rank = pruned_count(budget.sparsity, rows * cols) - 1,
                              .work = rank_work_.data(),
                              .value = threshold_.as<float>()},
                             stream_));
    ESPALIER_TRY(mask_threshold(task, threshold_.as<float>(), stream_));
  }
  ESPALIER_CUDA_TRY(cudaMemcpyAsync(host_.as<void>(), kept_.data(), static_cast<size_t>(mask_bytes),
                                    cudaMemcpyDeviceToHost, stream_));
  ESPALIER_CUDA_TRY(cudaStreamSynchronize(stream_));
  const uint32_t* kept = host_.as<uint32_t>();
  pool_.parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const bool keeps = (kept[r * words + c / 32] >> (c % 32) & 1) != 0;
        weights[r * cols + c] = keeps ? weights[r * cols + c] : 0.0f;
      }
    }
  });
  return true;
}

}  // namespace espalier::cuda
