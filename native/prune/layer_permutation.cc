// LayerPruner::permute_channels: the inner channels of an expert in the order in which n:m keeps most.
#include <algorithm>
#include <cmath>

#include "prune/channel_permutation.h"
#include "prune/layer_pruner.h"

namespace espalier {
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
    std::vector<float> values = in_channel_order(current(id), role, weights_.ref(id).cols, order.value());
    ESPALIER_TRY(replace(id, values));
  }
  return activation == nullptr ? Status::ok() : activation->permute(*pool_, order.value());
}

}  // namespace espalier
