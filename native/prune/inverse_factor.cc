#include "prune/inverse_factor.h"

#include <cmath>
#include <string>

#include "prune/linalg.h"

namespace espalier {
namespace {

// Fills the upper triangle of H.
void fill(ThreadPool& pool, const Hessian& hessian, double damping, double* h) {
  const int64_t n = hessian.width();
  pool.parallel_for(n, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = i; j < n; ++j) h[i * n + j] = hessian.at(i, j);
      h[i * n + i] += damping;
    }
  });
}

}  // namespace

Status check_usable(const HessianScale& scale) {
  if (scale.usable) return Status::ok();
  return Status(Code::kNonFinite,
                "the calibration inputs have no finite Gram matrix: the model's activations overflow");
}

Result<double> enough_damping(double damping, const std::function<Result<bool>(double)>& factor) {
  for (;; damping = damping > 0 ? 10 * damping : 1e-4) {
    const Result<bool> factored = factor(damping);
    if (!factored.is_ok()) return factored.status();
    if (factored.value()) return damping;
    if (damping >= 1) {
      return Status(Code::kNonFinite,
                    "the Gram matrix of the calibration inputs is not positive definite even with "
                    "its mean diagonal added: the model's activations overflow");
    }
  }
}

Result<InverseFactor> factor_inverse(ThreadPool& pool, const Hessian& hessian, double damping) {
  InverseFactor factor;
  const int64_t n = hessian.width();
  factor.width = n;
  factor.dead = hessian.scale().dead;
  ESPALIER_TRY(check_usable(hessian.scale()));
  factor.upper.reset(static_cast<size_t>(n * n));
  if (factor.upper.size() == 0) {
    return Status(Code::kOutOfMemory, "no memory for the inverse of the Gram matrix of " + std::to_string(n) +
                                          " input columns (" + std::to_string((8 * n * n) >> 20) +
                                          " MiB): free memory, or choose a method without weight update");
  }
  const Result<double> enough = enough_damping(damping, [&](double tried) -> Result<bool> {
    fill(pool, hessian, tried, factor.upper.data());
    const Result<int64_t> factored = inverse_upper_factor(pool, factor.upper.data(), n);
    if (!factored.is_ok()) return factored.status();
    return factored.value() == n;
  });
  if (!enough.is_ok()) return enough.status();
  factor.damping = enough.value();
  return factor;
}

}  // namespace espalier
