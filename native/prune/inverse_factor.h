// The inverse of a site's Gram matrix, factored for second-order pruning.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "prune/statistics.h"

namespace espalier {

// U, upper triangular, of H⁻¹ = Uᵀ·U. H is the Gram matrix of the inputs scaled to a mean diagonal of 1 over its live
// columns (second-order pruning does not depend on the scale), with 1 on the diagonal of the dead ones (never active)
// and the damping added to the diagonal.
struct InverseFactor {
  int64_t width = 0;
  AlignedBuffer<double> upper;  // [width, width]; only the upper triangle means something
  std::vector<int64_t> dead;    // columns that no token activated
  double damping = 0;           // what was added, as a fraction of the mean diagonal
};

// `statistics` must have a finished Gram matrix with a live column. Where H is not positive definite in spite of its
// damping, the damping is raised tenfold, up to 1. kNonFinite where the inputs were not finite, kOutOfMemory.
Result<InverseFactor> factor_inverse(ThreadPool& pool, const SiteStatistics& statistics, double damping);

}  // namespace espalier
