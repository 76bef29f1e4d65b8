// The inverse of a site's Gram matrix, factored for second-order pruning.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/aligned.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "prune/hessian.h"

namespace espalier {

// U, upper triangular, of (H + damping · I)⁻¹ = Uᵀ·U.
struct InverseFactor {
  int64_t width = 0;
  AlignedBuffer<double> upper;  // [width, width]; only the upper triangle means something
  std::vector<int64_t> dead;    // columns that no token activated
  double damping = 0;           // what was added, as a fraction of the mean diagonal
};

// Where H is not positive definite in spite of its damping, the damping is raised tenfold, up to 1. `factor` tries one
// and says whether it was enough. Returns what was; kNonFinite, and what `factor` gives.
Result<double> enough_damping(double damping, const std::function<Result<bool>(double)>& factor);

// kNonFinite where `scale` is not usable.
Status check_usable(const HessianScale& scale);

// With enough damping. kNonFinite where the inputs were not finite, kOutOfMemory.
Result<InverseFactor> factor_inverse(ThreadPool& pool, const Hessian& hessian, double damping);

}  // namespace espalier
