// LayerPruner::permute_channels: the inner channels of an expert in the order in which n:m keeps most.
#include <algorithm>
#include <cmath>

#include "prune/channel_permutation.h"
#include "prune/layer_pruner.h"

namespace espalier {
namespace {

// Channel i becomes what channel order[i] is: a row of gate and up, an element of each row of down.
std::vector<float> in_order(const std::vector<float>& values, Role role, int64_t cols,
                            const std::vector<int32_t>& order) {
  const size_t moved = role == Role::kDown ? 1 : static_cast<size_t>(cols);
  std::vector<float> permuted;
  permuted.reserve(values.size());
  for (size_t first = 0; first < values.size(); first += moved * order.size()) {
    for (const int32_t channel : order) {
      const auto begin = values.begin() + static_cast<ptrdiff_t>(first + static_cast<size_t>(channel) * moved);
      permuted.insert(permuted.end(), begin, begin + static_cast<ptrdiff_t>(moved));
    }
  }
  return permuted;
}

}  // namespace

Status LayerPruner::permute_channels(const MethodPlan& plan, SiteStatistics* activation, int part, int expert,
                                     const std::atomic<bool>* cancel) {
  const MatrixId down{part, expert, Role::kDown};
  MethodPlan scored = plan;
  if (plan.score == Score::kSecondOrder) scored = MethodPlan::activation(plan.budget);
  const Result<PreparedSite> site = prepare_site(*pool_, scored, activation);
  if (!site.is_ok()) {
    // Pruning the matrix comes to the same, and says what becomes of it.
    return site.status().code() == Code::kNonFinite ? Status::ok() : site.status();
  }
  const std::vector<float> weights = current(down);
  const WeightRef& ref = weights_.ref(down);
  std::vector<float> scores(weights.size());
  score_matrix(*pool_, scored, site.value(), weights.data(), ref.rows, ref.cols, scores.data());
  if (!std::all_of(scores.begin(), scores.end(), [](float score) { return std::isfinite(score); })) return Status::ok();
  const Result<std::vector<int32_t>> order =
      permute_for_groups(*pool_, scores.data(), ref.rows, ref.cols, plan.budget, cancel);
  if (!order.is_ok()) return order.status();
  for (const Role role : kRoles) {
    const MatrixId id{part, expert, role};
    std::vector<float> values = in_order(current(id), role, weights_.ref(id).cols, order.value());
    ESPALIER_TRY(replace(id, values));
  }
  return activation == nullptr ? Status::ok() : activation->permute(*pool_, order.value());
}

}  // namespace espalier
