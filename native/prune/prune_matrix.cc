#include "prune/prune_matrix.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <string>

#include "prune/score.h"
#include "prune/value_grid.h"

namespace espalier {
namespace {

constexpr int64_t kRowsPerTask = 16;

Status check_finite(ThreadPool& pool, const float* weights, int64_t rows, int64_t cols) {
  int64_t count = 0;
  int64_t first = rows * cols;
  std::mutex mutex;
  pool.parallel_for(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    int64_t part = 0;
    for (int64_t i = begin * cols; i < end * cols; ++i) part += std::isfinite(weights[i]) ? 0 : 1;
    if (part == 0) return;
    int64_t index = begin * cols;
    while (std::isfinite(weights[index])) ++index;
    std::lock_guard lock(mutex);
    count += part;
    first = std::min(first, index);
  });
  if (count == 0) return Status::ok();
  return Status(Code::kNonFinite, std::to_string(count) + " of " + std::to_string(rows * cols) +
                                      " weights are NaN or infinite, the first at row " + std::to_string(first / cols) +
                                      ", column " + std::to_string(first % cols));
}

// Score, choice, and zeros where the mask says so.
Status apply_mask(ThreadPool& pool, const MethodPlan& plan, const PreparedSite& site, float* weights, int64_t rows,
                  int64_t cols, MatrixMasks* masks) {
  if (plan.comparison == Comparison::kGiven) return Status::ok();
  if (masks != nullptr) {
    const bool has_norms = plan.score != Score::kMagnitude && !site.fallback;
    const Result<bool> applied = masks->apply(plan, has_norms ? site.norms.data() : nullptr, weights, rows, cols);
    if (!applied.is_ok()) return applied.status();
    if (applied.value()) return Status::ok();
  }
  const auto size = static_cast<size_t>(rows * cols);
  AlignedBuffer<float> scores(size);
  AlignedBuffer<uint8_t> mask(size);
  if (scores.size() == 0 || mask.size() == 0) {
    return Status(Code::kOutOfMemory, "no memory for the scores of a " + std::to_string(rows) + " x " +
                                          std::to_string(cols) + " matrix: free memory and run again");
  }
  score_matrix(pool, plan, site, weights, rows, cols, scores.data());
  const Budget& budget = plan.budget;
  if (budget.is_grouped()) {
    mask_groups(pool, scores.data(), rows, cols, budget.keep, budget.group, mask.data());
  } else if (plan.comparison == Comparison::kRow) {
    mask_rows(pool, scores.data(), rows, cols, budget.sparsity, mask.data());
  } else {
    const int64_t block = plan.comparison == Comparison::kMatrix ? cols : plan.block;
    mask_threshold(pool, scores.data(), rows, cols, block, budget.sparsity, mask.data());
  }
  pool.parallel_for(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * cols; i < end * cols; ++i) {
      const auto index = static_cast<size_t>(i);
      weights[i] = mask[index] != 0 ? weights[i] : 0.0f;
    }
  });
  return Status::ok();
}

Status check_site(const MethodPlan& plan, const PreparedSite& site, int64_t cols) {
  if (site.fallback || plan.score == Score::kMagnitude) return Status::ok();
  const int64_t width = plan.update == Update::kSparseGpt ? site.factor.width
                        : plan.update == Update::kAlps    ? site.hessian.width
                                                          : static_cast<int64_t>(site.norms.size());
  if (width == cols) return Status::ok();
  return Status(Code::kUsage, "a matrix with " + std::to_string(cols) +
                                  " input columns cannot be pruned with the "
                                  "statistics of a site with " +
                                  std::to_string(width));
}

}  // namespace

MethodPlan MethodPlan::magnitude(Budget budget) {
  return {.score = Score::kMagnitude, .comparison = Comparison::kMatrix, .update = Update::kNone, .budget = budget};
}

MethodPlan MethodPlan::activation(Budget budget) {
  return {.score = Score::kActivation, .comparison = Comparison::kRow, .update = Update::kNone, .budget = budget};
}

MethodPlan MethodPlan::relative(Budget budget) {
  return {.score = Score::kRelative, .comparison = Comparison::kRow, .update = Update::kNone, .budget = budget};
}

MethodPlan MethodPlan::sparsegpt(Budget budget) {
  return {
      .score = Score::kSecondOrder, .comparison = Comparison::kBlock, .update = Update::kSparseGpt, .budget = budget};
}

MethodPlan MethodPlan::quantize(Values values) {
  MethodPlan plan = sparsegpt(Budget::unstructured(0));
  plan.comparison = Comparison::kGiven;
  plan.values = values;
  return plan;
}

MethodPlan MethodPlan::alps(Budget budget) {
  return {.score = Score::kSecondOrder, .comparison = Comparison::kMatrix, .update = Update::kAlps, .budget = budget};
}

Status check_plan(const MethodPlan& plan) {
  const bool updates = plan.update != Update::kNone;
  const bool fits = plan.update == Update::kAlps
                        ? plan.comparison == Comparison::kMatrix
                        : plan.comparison == Comparison::kBlock || plan.comparison == Comparison::kGiven;
  if (updates != (plan.score == Score::kSecondOrder) || (updates && !fits)) {
    return Status(
        Code::kUsage,
        "the second-order score, the SparseGPT update and comparison by block (or of nothing, where the zeros "
        "are given) go together: use all of them, or another score without update");
  }
  if (plan.values != Values::kF32 && !is_quantised(plan.values)) {
    return Status(Code::kUsage, "weights are rounded to int8 or int4, or not at all");
  }
  if (!(plan.shrinkage >= 0) || !std::isfinite(plan.shrinkage)) {
    return Status(Code::kUsage, "shrinkage " + std::to_string(plan.shrinkage) + " is out of range: 0 or more, finite");
  }
  if (plan.permute_channels && !plan.budget.is_grouped()) {
    return Status(Code::kUsage, "channels are permuted for n:m only: leave permute_channels out");
  }
  if (!std::isfinite(plan.power)) return Status(Code::kUsage, "the power of the input's length is not finite");
  if (plan.block < 1) {
    return Status(Code::kUsage, "block of " + std::to_string(plan.block) + " columns is out of range: at least 1");
  }
  if (!(plan.damping >= 0) || !std::isfinite(plan.damping)) {
    return Status(Code::kUsage, "damping " + std::to_string(plan.damping) + " is out of range: 0 or more, finite");
  }
  return check_budget(plan.budget, plan.budget.is_grouped() ? plan.budget.group : 1);
}

Result<bool> says_nothing(int64_t tokens, const std::vector<double>& squared_norms) {
  double total = 0;
  for (const double norm : squared_norms) total += norm;
  if (!std::isfinite(total)) {
    return Status(Code::kNonFinite, "the calibration inputs are NaN or infinite: the model's activations overflow");
  }
  return tokens == 0 || total == 0;
}

Result<PreparedSite> prepare_site(ThreadPool& pool, const MethodPlan& plan, SiteStatistics* statistics,
                                  const SiteStatistics* pooled) {
  ESPALIER_TRY(check_plan(plan));
  PreparedSite site;
  if (plan.score == Score::kMagnitude) return site;
  const bool updates = plan.update != Update::kNone;
  if (statistics == nullptr || (updates && !statistics->has_gram())) {
    return Status(Code::kUsage, updates
                                    ? "a weight update needs the Gram matrix of the inputs: collect statistics with it"
                                    : "this method needs statistics of its inputs: run calibration first");
  }
  const Result<bool> nothing = says_nothing(statistics->tokens(), statistics->squared_norms());
  if (!nothing.is_ok()) return nothing.status();
  site.fallback = nothing.value();
  if (updates && !site.fallback) {
    statistics->finish(pool);
    // Inputs so small that their squares are zero in float32 say as little as none.
    bool live = false;
    for (int64_t j = 0; j < statistics->width(); ++j) live = live || statistics->gram(j, j) != 0;
    site.fallback = !live;
  }
  if (site.fallback) return site;
  if (updates) {
    const Hessian hessian(*statistics, {plan.shrinkage, pooled});
    site.shrunk = hessian.scale().shrunk;
    site.starved = statistics->tokens() < statistics->width();
    double damping = plan.damping;
    if (plan.update == Update::kSparseGpt || is_quantised(plan.values)) {
      Result<InverseFactor> factor = factor_inverse(pool, hessian, damping);
      if (!factor.is_ok()) return factor.status();
      site.factor = std::move(factor.value());
      damping = site.factor.damping;
    }
    if (plan.update == Update::kAlps) {
      Result<ScaledHessian> scaled = scale_hessian(pool, hessian, damping);
      if (!scaled.is_ok()) return scaled.status();
      site.hessian = std::move(scaled.value());
    }
    return site;
  }
  for (const double norm : statistics->squared_norms()) site.norms.push_back(static_cast<float>(std::sqrt(norm)));
  return site;
}

void score_matrix(ThreadPool& pool, const MethodPlan& plan, const PreparedSite& site, const float* weights,
                  int64_t rows, int64_t cols, float* scores) {
  if (plan.score == Score::kActivation && !site.fallback) {
    score_activation(pool, weights, rows, cols, site.norms.data(), scores);
  } else if (plan.score == Score::kRelative && !site.fallback) {
    score_relative(pool, weights, rows, cols, site.norms.data(), plan.power, scores);
  } else {
    score_magnitude(pool, weights, rows, cols, scores);
  }
}

Result<MatrixReport> prune_matrix(ThreadPool& pool, const MethodPlan& plan, const PreparedSite& site, float* weights,
                                  int64_t rows, int64_t cols, MatrixMasks* masks) {
  ESPALIER_TRY(check_plan(plan));
  if (rows < 1 || cols < 1) {
    return Status(Code::kUsage, "a " + std::to_string(rows) + " x " + std::to_string(cols) + " matrix has no weights");
  }
  ESPALIER_TRY(check_budget(plan.budget, cols));
  ESPALIER_TRY(check_site(plan, site, cols));
  ESPALIER_TRY(check_finite(pool, weights, rows, cols));
  MatrixReport report;
  report.fallback = site.fallback;
  report.starved = site.starved;
  report.shrunk = site.shrunk;
  if (plan.update != Update::kNone && !site.fallback) {
    SparseGptPlan walk{.budget = plan.budget,
                       .keep_zeros = plan.comparison == Comparison::kGiven,
                       .values = plan.values,
                       .block = plan.block};
    if (plan.update == Update::kAlps) {
      const Result<AlpsReport> solved = prune_alps(pool, site.hessian, plan.budget, weights, rows);
      if (!solved.is_ok()) return solved.status();
      report.damping = site.hessian.damping;
      walk.keep_zeros = true;
    }
    if (plan.update == Update::kSparseGpt || is_quantised(plan.values)) {
      ESPALIER_TRY(site.walk != nullptr ? site.walk->prune(walk, weights, rows)
                                        : prune_sparsegpt(pool, site.factor, walk, weights, rows));
      report.damping = site.factor.damping;
    }
  } else {
    ESPALIER_TRY(apply_mask(pool, plan, site, weights, rows, cols, masks));
    if (is_quantised(plan.values)) round_to_nearest(pool, plan.values, weights, rows, cols);
  }
  std::atomic<int64_t> zeros{0};
  pool.parallel_for(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    zeros += std::count(weights + begin * cols, weights + end * cols, 0.0f);
  });
  report.zeros = zeros;
  report.kept = rows * cols - report.zeros;
  report.sparsity = static_cast<double>(report.zeros) / static_cast<double>(rows * cols);
  return report;
}

}  // namespace espalier
