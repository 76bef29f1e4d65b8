// LayerPruner::restructure: other experts and another router in the place of a part's.
#include "prune/layer_pruner.h"
#include "prune/merge_experts.h"

namespace espalier {

Status LayerPruner::check(int part, const RestructurePlan& plan) const {
  const auto usage = [](const char* problem) { return Status(Code::kUsage, problem); };
  if (part < 0 || part >= weights_.parts() || weights_.experts(part) == 0) return usage("the part has no experts");
  const WeightRef& router = spec_.feed_forward[static_cast<size_t>(part)].router;
  const size_t rows = plan.expert_of_row.size();
  const int64_t row_bytes = router.cols * (dtype_bits(router.dtype) / 8);
  if (plan.router.size() != rows * static_cast<size_t>(row_bytes)) return usage("the router does not fit its rows");
  if (plan.top_k < 1 || plan.top_k > static_cast<int>(rows)) return usage("top k does not fit the router");
  if (!plan.correction_bias.empty() && plan.correction_bias.size() != rows) return usage("the bias does not fit");
  if (plan.experts.empty()) return usage("no expert would be left");
  for (const int32_t expert : plan.expert_of_row) {
    if (expert < 0 || expert >= static_cast<int32_t>(plan.experts.size())) return usage("a row leads to no expert");
  }
  std::vector<bool> taken(static_cast<size_t>(weights_.experts(part)), false);
  for (const std::vector<ExpertMember>& members : plan.experts) {
    if (members.empty()) return usage("an expert has no members");
    for (const ExpertMember& member : members) {
      if (member.expert < 0 || member.expert >= weights_.experts(part)) return usage("a member is no expert");
      if (taken[static_cast<size_t>(member.expert)]) return usage("an expert is a member twice");
      taken[static_cast<size_t>(member.expert)] = true;
    }
  }
  return Status::ok();
}

ExpertValues LayerPruner::expert_values(int part, int32_t expert) {
  ExpertValues values;
  const WeightRef& gate = weights_.ref({part, expert, Role::kGate});
  values.width = gate.rows;
  values.hidden = gate.cols;
  values.gate = current({part, expert, Role::kGate});
  values.up = current({part, expert, Role::kUp});
  values.down = current({part, expert, Role::kDown});
  return values;
}

Status LayerPruner::restructure(int part, const RestructurePlan& plan, const std::atomic<bool>* cancel) {
  ESPALIER_TRY(check(part, plan));
  std::vector<int32_t> from;
  std::vector<ExpertWeights::Stored> merged(plan.experts.size());
  std::vector<Mlp> experts(plan.experts.size());
  for (size_t i = 0; i < plan.experts.size(); ++i) {
    const std::vector<ExpertMember>& members = plan.experts[i];
    from.push_back(members[0].expert);
    if (members.size() == 1) continue;
    const auto load = [&](int32_t expert) -> Result<ExpertValues> { return expert_values(part, expert); };
    Result<ExpertValues> mean = merge_experts(*pool_, members, plan.align, load, cancel);
    if (!mean.is_ok()) return mean.status();
    ExpertValues& values = mean.value();
    for (auto [role, own] : {std::pair{Role::kGate, &values.gate}, std::pair{Role::kUp, &values.up},
                             std::pair{Role::kDown, &values.down}}) {
      const WeightRef& ref = weights_.ref({part, from[i], role});
      round_floats(*pool_, ref.dtype, *own);
      store_floats(*pool_, ref.dtype, *own, merged[i][static_cast<size_t>(role)]);
      Result<Linear> packed = pack(ref, *own);
      if (!packed.is_ok()) return packed.status();
      linear_of(experts[i], role) = std::move(packed.value());
    }
  }
  FeedForwardPart& running = layer_.feed_forward()[static_cast<size_t>(part)];
  for (size_t i = 0; i < from.size(); ++i) {
    if (plan.experts[i].size() == 1) experts[i] = std::move(running.experts()[static_cast<size_t>(from[i])]);
  }
  weights_.restructure(part, from, std::move(merged));
  const WeightRef& old = spec_.feed_forward[static_cast<size_t>(part)].router;
  const auto rows = static_cast<int64_t>(plan.expert_of_row.size());
  std::vector<float> values(static_cast<size_t>(rows * old.cols));
  load_floats(old.dtype, plan.router.data(), 0, static_cast<int64_t>(values.size()), values.data());
  Result<Linear> router = Linear::from_floats(*pool_, {.precision = Precision::kSource, .sparse = false}, old.dtype,
                                              rows, old.cols, values.data());
  if (!router.is_ok()) return router.status();
  RouterOptions routing = running.routing();
  routing.top_k = plan.top_k;
  routing.correction_bias = plan.correction_bias;
  running.restructure(std::move(router.value()), std::move(routing), plan.expert_of_row, std::move(experts));
  runner_->layer_changed();
  statistics_.reset();
  stored_id_.reset();
  return Status::ok();
}

}  // namespace espalier
