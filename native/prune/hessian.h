// The matrix H that second-order pruning works with: a site's Gram matrix, and what it borrows where it saw few tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "prune/statistics.h"

namespace espalier {

// A Gram matrix of T tokens estimates the inputs' second moments badly where T is not large against its width. It is
// shrunk by the share s = strength · width / (strength · width + T) towards `pooled`, the sum of the Gram matrices of
// all experts of the layer at the same inputs, scaled to the same trace; without `pooled` (the inputs of two experts'
// down projections have nothing in common) towards its own diagonal.
struct Shrinkage {
  double strength = 0;
  const SiteStatistics* pooled = nullptr;
};

// What a Gram matrix is multiplied by to become H.
struct HessianScale {
  bool usable = false;        // false where inputs were not finite or no column is live; the others say nothing then
  double own = 1;             // of the expert's own Gram matrix
  double pooled = 0;          // of the pooled one
  double diagonal = 1;        // of the own diagonal, beside `own`
  double shrunk = 0;          // the share s; 0 without shrinkage
  std::vector<int64_t> dead;  // columns that no token of the expert activated

  // From the diagonals of both; that of the pooled one is empty where there is none.
  static HessianScale of(const std::vector<float>& diagonal, const std::vector<float>& pooled_diagonal, int64_t tokens,
                         double strength);
};

// H, scaled to a mean diagonal of 1 over its live columns (no result depends on the scale); the diagonal of dead
// columns, which no token activated, is 1. Refers to `statistics`, whose Gram matrix must be finished.
class Hessian {
 public:
  Hessian(const SiteStatistics& statistics, const Shrinkage& shrinkage);

  int64_t width() const { return own_.width(); }
  const HessianScale& scale() const { return scale_; }
  // i <= j.
  double at(int64_t i, int64_t j) const;

 private:
  const SiteStatistics& own_;
  const SiteStatistics* pooled_;
  HessianScale scale_;
};

}  // namespace espalier
