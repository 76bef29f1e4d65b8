// LayerPruner::prune: every expert matrix by a plan, with the statistics of one expert after the other.
#include <algorithm>
#include <array>
#include <cmath>

#include "prune/balance.h"
#include "prune/layer_pruner.h"
#include "prune/score.h"

namespace espalier {

Status LayerPruner::prune_one(const MethodPlan& plan, const PreparedSite& site, std::vector<float>& values,
                              ExpertMatrixReport& report) {
  const WeightRef& ref = weights_.ref(report.id);
  current(report.id, values);
  Result<MatrixReport> pruned = prune_matrix(*pool_, plan, site, values.data(), ref.rows, ref.cols, runner_->masks());
  if (pruned.is_ok()) {
    report.matrix = pruned.value();
  } else if (pruned.status().code() == Code::kNonFinite && allow_nonfinite_) {
    report.skipped = true;
  } else {
    return Status(pruned.status()).with_tensor(ref.name);
  }
  return replace(report.id, values);
}

Result<std::vector<double>> LayerPruner::sparsities(const MethodPlan& plan, const GatheredStatistics* statistics,
                                                    int part, Role role) {
  const auto experts = static_cast<size_t>(weights_.experts(part));
  if (plan.meeting == Meeting::kEach || plan.budget.is_grouped() || statistics == nullptr) {
    return std::vector<double>(experts, plan.budget.sparsity);
  }
  std::vector<int64_t> sizes;
  for (int expert = 0; expert < weights_.experts(part); ++expert) {
    const WeightRef& ref = weights_.ref({part, expert, role});
    sizes.push_back(ref.rows * ref.cols);
  }
  // The loss of a weight alone, w² · ‖X_j‖², orders as its root does.
  std::vector<float> scores;
  return balanced_sparsities(*pool_, plan.budget.sparsity, sizes, [&](size_t e) -> Result<std::span<const float>> {
    scores = activation_scores(*statistics, {part, static_cast<int>(e), role});
    return std::span<const float>(scores);
  });
}

std::vector<float> LayerPruner::activation_scores(const GatheredStatistics& statistics, const MatrixId& id) {
  const std::vector<float> values = current(id);
  const ExpertStatistics& expert = statistics.lengths(id.part, id.expert);
  const SiteStatistics& site = id.role == Role::kDown ? expert.activation : expert.input;
  std::vector<float> norms;
  for (const double norm : site.squared_norms()) norms.push_back(static_cast<float>(std::sqrt(norm)));
  std::vector<float> scores(values.size());
  const WeightRef& ref = weights_.ref(id);
  score_activation(*pool_, values.data(), ref.rows, ref.cols, norms.data(), scores.data());
  for (float& score : scores) score = std::isfinite(score) ? score : 0.0f;
  return scores;
}

Result<double> LayerPruner::outlier_share(double multiple, const std::atomic<bool>* cancel) {
  if (statistics_ == nullptr) return 0.0;
  double sum = 0;
  int64_t count = 0;
  int64_t above = 0;
  const auto each = [&](const auto& use) -> Status {
    for (const MatrixId& id : weights_.ids()) {
      ESPALIER_TRY(check_cancelled(cancel));
      for (const float score : activation_scores(*statistics_, id)) use(static_cast<double>(score));
    }
    return Status::ok();
  };
  ESPALIER_TRY(each([&](double score) {
    sum += score;
    ++count;
  }));
  if (count == 0) return 0.0;
  const double limit = multiple * sum / static_cast<double>(count);
  ESPALIER_TRY(each([&](double score) { above += score > limit ? 1 : 0; }));
  return static_cast<double>(above) / static_cast<double>(count);
}

Result<PreparedSite> LayerPruner::settle(Result<PreparedSite> prepared, const MatrixId& id) const {
  if (prepared.is_ok()) return prepared;
  if (prepared.status().code() != Code::kNonFinite || !allow_nonfinite_) {
    return Status(prepared.status()).with_tensor(weights_.ref(id).name);
  }
  // What NaN in a weight does to the statistics behind it says nothing about these weights.
  PreparedSite blind;
  blind.fallback = true;
  return blind;
}

Result<std::vector<ExpertMatrixReport>> LayerPruner::prune(const MethodPlan& plan, const Progress& progress,
                                                           const std::atomic<bool>* cancel) {
  grouped_zeros_ = plan.budget.is_grouped();
  const std::unique_ptr<GatheredStatistics> used = std::move(statistics_);
  std::vector<ExpertMatrixReport> reports;
  std::vector<float> values;
  const auto total = static_cast<int64_t>(weights_.ids().size());
  for (int part = 0; part < weights_.parts(); ++part) {
    std::array<std::vector<double>, kRoles.size()> shares;
    for (const Role role : kRoles) {
      Result<std::vector<double>> found = sparsities(plan, used.get(), part, role);
      if (!found.is_ok()) return found.status();
      shares[static_cast<size_t>(role)] = std::move(found.value());
    }
    const bool elsewhere = used != nullptr && !plan.permute_channels && used->prepares(plan);
    const bool shrinks = plan.update != Update::kNone && plan.shrinkage > 0;
    const SiteStatistics* pooled = used != nullptr && shrinks && !elsewhere ? used->pooled(part) : nullptr;
    for (int expert = 0; expert < weights_.experts(part); ++expert) {
      std::optional<SiteStatistics> input, activation;
      if (used != nullptr && !elsewhere) {
        Result<ExpertStatistics> taken = used->take(part, expert);
        if (!taken.is_ok()) return taken.status();
        input = std::move(taken.value().input);
        activation = std::move(taken.value().activation);
      }
      if (plan.permute_channels) {
        ESPALIER_TRY(permute_channels(plan, activation ? &*activation : nullptr, part, expert, cancel));
      }
      const auto prune_site = [&](std::optional<SiteStatistics>& site, const SiteStatistics* layer,
                                  std::initializer_list<Role> roles) -> Status {
        ESPALIER_TRY(check_cancelled(cancel));
        const int64_t tokens = elsewhere ? used->lengths(part, expert).input.tokens() : site ? site->tokens() : 0;
        const MatrixId first{part, expert, *roles.begin()};
        const Result<PreparedSite> prepared = settle(
            elsewhere ? used->prepare(plan, first) : prepare_site(*pool_, plan, site ? &*site : nullptr, layer), first);
        if (!prepared.is_ok()) return prepared.status();
        site.reset();
        for (const Role role : roles) {
          ExpertMatrixReport report;
          report.id = {part, expert, role};
          report.tokens = tokens;
          MethodPlan own = plan;
          if (!own.budget.is_grouped()) {
            own.budget.sparsity = shares[static_cast<size_t>(role)][static_cast<size_t>(expert)];
          }
          ESPALIER_TRY(prune_one(own, prepared.value(), values, report));
          reports.push_back(report);
          if (progress) progress(static_cast<int64_t>(reports.size()), total);
        }
        return Status::ok();
      };
      ESPALIER_TRY(prune_site(input, pooled, {Role::kGate, Role::kUp}));
      ESPALIER_TRY(prune_site(activation, nullptr, {Role::kDown}));
    }
  }
  return reports;
}

}  // namespace espalier
