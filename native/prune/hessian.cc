#include "prune/hessian.h"

#include <cmath>

namespace espalier {

namespace {

std::vector<float> diagonal_of(const SiteStatistics* statistics) {
  std::vector<float> diagonal;
  for (int64_t j = 0; statistics != nullptr && j < statistics->width(); ++j) diagonal.push_back(statistics->gram(j, j));
  return diagonal;
}

}  // namespace

HessianScale HessianScale::of(const std::vector<float>& diagonal, const std::vector<float>& pooled_diagonal,
                              int64_t tokens, double strength) {
  HessianScale scale;
  double trace = 0;
  double pooled_trace = 0;
  for (size_t j = 0; j < diagonal.size(); ++j) {
    trace += static_cast<double>(diagonal[j]);
    if (diagonal[j] == 0) scale.dead.push_back(static_cast<int64_t>(j));
    if (!pooled_diagonal.empty() && diagonal[j] != 0) pooled_trace += static_cast<double>(pooled_diagonal[j]);
  }
  const double mean = trace / static_cast<double>(diagonal.size() - scale.dead.size());
  scale.usable = std::isfinite(mean) && mean > 0;
  if (!scale.usable) return scale;
  scale.own = 1 / mean;
  if (strength <= 0) return scale;
  const double prior = strength * static_cast<double>(diagonal.size());
  scale.shrunk = prior / (prior + static_cast<double>(tokens));
  scale.own *= 1 - scale.shrunk;
  if (!pooled_diagonal.empty()) {
    scale.pooled = scale.shrunk * trace / (pooled_trace * mean);
  } else {
    scale.diagonal = 1 / (1 - scale.shrunk);
  }
  return scale;
}

Hessian::Hessian(const SiteStatistics& statistics, const Shrinkage& shrinkage)
    : own_(statistics),
      pooled_(shrinkage.pooled),
      scale_(HessianScale::of(diagonal_of(&statistics), diagonal_of(shrinkage.pooled), statistics.tokens(),
                              shrinkage.strength)) {}

double Hessian::at(int64_t i, int64_t j) const {
  const auto own = static_cast<double>(own_.gram(i, j));
  const double pooled = scale_.pooled > 0 ? scale_.pooled * static_cast<double>(pooled_->gram(i, j)) : 0;
  if (i != j) return scale_.own * own + pooled;
  return own == 0 ? 1 : scale_.own * scale_.diagonal * own + pooled;
}

}  // namespace espalier
