#include "prune/inverse_factor.h"

#include <cmath>
#include <string>

#include "prune/linalg.h"

namespace espalier {
namespace {

// Fills the upper triangle of H.
void fill_hessian(ThreadPool& pool, const SiteStatistics& statistics, double scale, double damping, double* h) {
  const int64_t n = statistics.width();
  pool.parallel_for(n, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = i; j < n; ++j) h[i * n + j] = scale * static_cast<double>(statistics.gram(i, j));
      if (!(h[i * n + i] > 0)) h[i * n + i] = 1.0;
      h[i * n + i] += damping;
    }
  });
}

}  // namespace

Result<InverseFactor> factor_inverse(ThreadPool& pool, const SiteStatistics& statistics, double damping) {
  const int64_t n = statistics.width();
  InverseFactor factor;
  factor.width = n;
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    const auto diagonal = static_cast<double>(statistics.gram(j, j));
    sum += diagonal;
    if (diagonal == 0) factor.dead.push_back(j);
  }
  const double mean = sum / static_cast<double>(n - static_cast<int64_t>(factor.dead.size()));
  if (!std::isfinite(mean) || !(mean > 0)) {
    return Status(Code::kNonFinite,
                  "the calibration inputs have no finite Gram matrix: the model's activations overflow");
  }
  factor.upper.reset(static_cast<size_t>(n * n));
  if (factor.upper.size() == 0) {
    return Status(Code::kOutOfMemory, "no memory for the inverse of the Gram matrix of " + std::to_string(n) +
                                          " input columns (" + std::to_string((8 * n * n) >> 20) +
                                          " MiB): free memory, or choose a method without weight update");
  }
  for (factor.damping = damping;; factor.damping = factor.damping > 0 ? 10 * factor.damping : 1e-4) {
    fill_hessian(pool, statistics, 1.0 / mean, factor.damping, factor.upper.data());
    const Result<int64_t> factored = inverse_upper_factor(pool, factor.upper.data(), n);
    if (!factored.is_ok()) return factored.status();
    if (factored.value() == n) return factor;
    if (factor.damping >= 1) {
      return Status(Code::kNonFinite,
                    "the Gram matrix of the calibration inputs is not positive definite even with "
                    "its mean diagonal added: the model's activations overflow");
    }
  }
}

}  // namespace espalier
