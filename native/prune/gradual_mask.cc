#include "prune/gradual_mask.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace espalier {

int64_t zeros_of(const ExpertTrainer& expert) {
  int64_t zeros = 0;
  for (const TrainedMatrix& matrix : expert.matrices()) zeros += std::count(matrix.kept.begin(), matrix.kept.end(), 0);
  return zeros;
}

int64_t scheduled_zeros(int64_t last, double progress) {
  const double left = 1 - std::clamp(progress, 0.0, 1.0);
  return static_cast<int64_t>(static_cast<double>(last) * (1 - 0.7 * left * left * left));
}

void drop_least(ExpertTrainer& expert, const Sensitivity& sensitivity, int64_t zeros) {
  const int64_t drop = zeros - zeros_of(expert);
  if (drop <= 0) return;
  ExpertTrainer::Matrices& matrices = expert.matrices();
  const TrainedMatrix& down = matrices[static_cast<size_t>(Role::kDown)];
  std::vector<double> reach(static_cast<size_t>(expert.width()));  // ‖column of down‖²: how far an activation reaches
  for (size_t i = 0; i < down.weight.size(); ++i) {
    reach[i % reach.size()] += static_cast<double>(down.weight[i]) * down.weight[i];
  }
  const double tokens = std::max(sensitivity.tokens, 1.0);

  struct Candidate {
    float cost;
    size_t matrix, at;
  };
  std::vector<Candidate> candidates;
  for (size_t m = 0; m < matrices.size(); ++m) {
    const TrainedMatrix& matrix = matrices[m];
    const bool is_down = &matrix == &down;
    const std::vector<double>& rows = m == static_cast<size_t>(Role::kGate) ? sensitivity.gate : sensitivity.up;
    for (size_t i = 0; i < matrix.weight.size(); ++i) {
      if (matrix.kept[i] == 0) continue;
      const size_t r = i / static_cast<size_t>(matrix.cols);
      const size_t c = i % static_cast<size_t>(matrix.cols);
      const double curvature =
          is_down ? sensitivity.activation[c] : rows[r] * reach[r] * (sensitivity.input[c] / tokens);
      const auto cost = static_cast<float>(curvature * matrix.weight[i] * matrix.weight[i]);
      // Training that goes wrong makes NaN, which has no place in an order.
      candidates.push_back({cost >= 0 ? cost : std::numeric_limits<float>::infinity(), m, i});
    }
  }
  const auto end = candidates.begin() + std::min(drop, static_cast<int64_t>(candidates.size()));
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.cost != b.cost ? a.cost < b.cost : a.matrix != b.matrix ? a.matrix < b.matrix : a.at < b.at;
  };
  if (end != candidates.end()) std::nth_element(candidates.begin(), end, candidates.end(), before);
  for (auto it = candidates.begin(); it != end; ++it) matrices[it->matrix].drop(it->at);
}

}  // namespace espalier
