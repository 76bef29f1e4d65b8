#include "prune/hessian.h"

#include <cmath>

namespace espalier {

Hessian::Hessian(const SiteStatistics& statistics, const Shrinkage& shrinkage)
    : own_(statistics), pooled_(shrinkage.pooled) {
  const int64_t n = width();
  double trace = 0;
  double pooled_trace = 0;
  for (int64_t j = 0; j < n; ++j) {
    const auto diagonal = static_cast<double>(own_.gram(j, j));
    trace += diagonal;
    if (diagonal == 0) dead_.push_back(j);
    if (pooled_ != nullptr && diagonal != 0) pooled_trace += static_cast<double>(pooled_->gram(j, j));
  }
  const double mean = trace / static_cast<double>(n - static_cast<int64_t>(dead_.size()));
  usable_ = std::isfinite(mean) && mean > 0;
  if (!usable_) return;
  scale_ = 1 / mean;
  if (shrinkage.strength <= 0) return;
  const double prior = shrinkage.strength * static_cast<double>(n);
  shrunk_ = prior / (prior + static_cast<double>(own_.tokens()));
  scale_ *= 1 - shrunk_;
  if (pooled_ != nullptr) {
    pooled_scale_ = shrunk_ * trace / (pooled_trace * mean);
  } else {
    diagonal_ = 1 / (1 - shrunk_);
  }
}

double Hessian::at(int64_t i, int64_t j) const {
  const auto own = static_cast<double>(own_.gram(i, j));
  const double pooled = pooled_scale_ > 0 ? pooled_scale_ * static_cast<double>(pooled_->gram(i, j)) : 0;
  if (i != j) return scale_ * own + pooled;
  return own == 0 ? 1 : scale_ * diagonal_ * own + pooled;
}

}  // namespace espalier
