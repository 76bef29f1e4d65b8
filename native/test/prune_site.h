// A site's statistics of random inputs, its damped Gram matrix in float64, and what a change of weights costs under it.
#pragma once

#include <doctest/doctest.h>

#include "core/thread_pool.h"
#include "prune/statistics.h"
#include "prune_reference.h"

namespace reference {

using espalier::Result;
using espalier::SiteStatistics;
using espalier::ThreadPool;

inline SiteStatistics collect(ThreadPool& pool, std::mt19937_64& random, int64_t width) {
  const int64_t tokens = 3 * width;
  const std::vector<float> x = correlated_inputs(random, tokens, width);
  Result<SiteStatistics> site = SiteStatistics::create(width, true);
  REQUIRE(site.is_ok());
  site.value().add(pool, x.data(), tokens, width, nullptr);
  site.value().finish(pool);
  return std::move(site.value());
}

// H with a mean diagonal of 1 and the damping on it.
inline Matrix damped(const SiteStatistics& site, double damping) {
  Matrix h(site.width(), site.width());
  double trace = 0;
  for (int64_t j = 0; j < h.rows; ++j) trace += static_cast<double>(site.gram(j, j));
  for (int64_t i = 0; i < h.rows; ++i) {
    for (int64_t j = i; j < h.cols; ++j) {
      h.at(i, j) = h.at(j, i) = static_cast<double>(site.gram(i, j)) * static_cast<double>(h.rows) / trace;
    }
    h.at(i, i) += damping;
  }
  return h;
}

inline double output_error(const std::vector<float>& a, const std::vector<float>& b, const Matrix& h) {
  double total = 0;
  const auto n = static_cast<size_t>(h.rows);
  for (size_t first = 0; first < a.size(); first += n) {
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) {
        total += static_cast<double>(a[first + i] - b[first + i]) * h.data[i * n + j] *
                 static_cast<double>(a[first + j] - b[first + j]);
      }
    }
  }
  return total;
}

}  // namespace reference
