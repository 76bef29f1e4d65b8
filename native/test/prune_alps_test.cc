// ALPS and what it is built of, against float64: explicit inverses, normal equations, ADMM written out.
#include <doctest/doctest.h>

#include "prune/alps.h"
#include "prune/inverse_factor.h"
#include "prune/refit.h"
#include "prune/sparsegpt.h"
#include "prune_site.h"

using namespace espalier;
using reference::collect;
using reference::damped;
using reference::Matrix;
using reference::output_error;

namespace {

// The same with a unit diagonal; `lengths` are what its columns were divided by.
Matrix unit_diagonal(Matrix h, std::vector<double>& lengths) {
  for (int64_t j = 0; j < h.rows; ++j) lengths.push_back(std::sqrt(h.at(j, j)));
  for (int64_t i = 0; i < h.rows; ++i) {
    for (int64_t j = 0; j < h.rows; ++j)
      h.at(i, j) /= lengths[static_cast<size_t>(i)] * lengths[static_cast<size_t>(j)];
  }
  return h;
}

struct Admm {
  std::vector<uint8_t> support;
  int64_t steps = 0;
  double margin = 1;  // smallest relative gap between a weight that stayed and one that went
};

// B = (HW − V + ρD)(H + ρI)⁻¹, D = the largest of B + V/ρ, V += ρ(B − D), as the paper has it, with W, V, D and B in
// full.
Admm admm(const Matrix& w, const Matrix& h, const Budget& budget) {
  const int64_t n = h.rows;
  Admm out;
  Matrix d = w;
  Matrix v(w.rows, n);
  const Matrix g = reference::multiply(w, h);
  double rho = 0.1;
  std::vector<uint8_t> earlier(w.data.size(), 0);
  Matrix inverse(n, n);
  const size_t group = budget.is_grouped() ? static_cast<size_t>(budget.group) : w.data.size();
  const auto zeros = budget.is_grouped() ? static_cast<size_t>(budget.group - budget.keep)
                                         : static_cast<size_t>(std::floor(budget.sparsity * double(w.data.size())));
  for (;;) {
    if (out.steps % 3 == 0) {
      Matrix shifted = h;
      for (int64_t j = 0; j < n; ++j) shifted.at(j, j) += rho;
      inverse = reference::inverse(shifted);
    }
    Matrix right = g;
    for (size_t i = 0; i < right.data.size(); ++i) right.data[i] += rho * d.data[i] - v.data[i];
    const Matrix b = reference::multiply(right, inverse);
    out.support.assign(w.data.size(), 1);
    for (size_t first = 0; first < w.data.size(); first += group) {
      std::vector<double> sizes;
      for (size_t i = first; i < first + group; ++i) sizes.push_back(std::fabs(b.data[i] + v.data[i] / rho));
      const std::vector<size_t> gone = reference::smallest(sizes, static_cast<int64_t>(zeros) + 1);
      for (size_t k = 0; k < zeros; ++k) out.support[first + gone[k]] = 0;
      out.margin = std::min(out.margin, 1 - sizes[gone[zeros - 1]] / sizes[gone[zeros]]);
    }
    for (size_t i = 0; i < w.data.size(); ++i) {
      d.data[i] = out.support[i] != 0 ? b.data[i] + v.data[i] / rho : 0;
      v.data[i] += rho * (b.data[i] - d.data[i]);
    }
    if (++out.steps % 3 != 0) continue;
    double changed = 0;
    for (size_t i = 0; i < earlier.size(); ++i) changed += earlier[i] != out.support[i];
    earlier = out.support;
    if ((out.steps > 3 && changed == 0) || out.steps == 300) return out;
    const double kept =
        static_cast<double>(w.data.size()) * (1 - static_cast<double>(zeros) / static_cast<double>(group));
    // Unstructured budgets round down.
    const double share = changed / (budget.is_grouped() ? kept : static_cast<double>(w.data.size() - zeros));
    rho *= share >= 0.1 ? 1.3 : share >= 0.005 ? 1.2 : 1.1;
  }
}

// argmin over the support of (t − w) H (t − w)ᵀ, by the normal equations of each row.
Matrix best_on_support(const std::vector<float>& target, const std::vector<uint8_t>& support, const Matrix& h) {
  const int64_t n = h.rows;
  Matrix out(static_cast<int64_t>(target.size()) / n, n);
  for (int64_t r = 0; r < out.rows; ++r) {
    std::vector<int64_t> kept;
    for (int64_t j = 0; j < n; ++j) {
      if (support[static_cast<size_t>(r * n + j)] != 0) kept.push_back(j);
    }
    const auto size = static_cast<int64_t>(kept.size());
    Matrix a(size, size);
    Matrix b(size, 1);
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) a.at(i, j) = h.at(kept[static_cast<size_t>(i)], kept[static_cast<size_t>(j)]);
      for (int64_t j = 0; j < n; ++j) {
        b.at(i, 0) +=
            h.at(kept[static_cast<size_t>(i)], j) * static_cast<double>(target[static_cast<size_t>(r * n + j)]);
      }
    }
    const Matrix solved = reference::multiply(reference::inverse(a), b);
    for (int64_t i = 0; i < size; ++i) out.at(r, kept[static_cast<size_t>(i)]) = solved.at(i, 0);
  }
  return out;
}

}  // namespace

TEST_CASE("the scaled Hessian and its shifted inverse are those of float64") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  for (const int64_t n : {7, 96, 150, 200}) {
    CAPTURE(n);
    const SiteStatistics site = collect(pool, random, n);
    const Result<ScaledHessian> scaled = scale_hessian(pool, Hessian(site, {}), 0.01);
    REQUIRE(scaled.is_ok());
    std::vector<double> lengths;
    Matrix h = unit_diagonal(damped(site, 0.01), lengths);
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        worst = std::max(worst, std::fabs(h.at(i, j) - static_cast<double>(scaled.value().at(i, j))));
      }
      h.at(i, i) += 0.3;
    }
    CHECK(worst < 1e-6);
    ShiftedInverse inverse;
    REQUIRE(inverse.allocate(n).is_ok());
    REQUIRE(inverse.factor(pool, scaled.value(), 0.3).is_ok());
    const auto size = static_cast<size_t>(tile_size(n));
    std::vector<float> in(size);
    Matrix right(n, kPanel);
    for (size_t i = 0; i < right.data.size(); ++i) {
      in[i] = reference::normal_floats(random, 1)[0];
      right.data[i] = static_cast<double>(in[i]);
    }
    std::vector<float> middle(size);
    std::vector<float> out(size);
    inverse.apply(in.data(), middle.data(), out.data());
    const Matrix expected = reference::multiply(reference::inverse(h), right);
    worst = 0;
    for (size_t i = 0; i < expected.data.size(); ++i) {
      worst = std::max(worst, std::fabs(expected.data[i] - static_cast<double>(out[i])));
    }
    CHECK(worst < 2e-5);
  }
}

TEST_CASE("refitting ends at the least-squares optimum on the support, and never makes it worse on the way") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t rows = 5;
  const int64_t n = 110;
  const SiteStatistics site = collect(pool, random, n);
  const Matrix h = damped(site, 0.1);
  const Result<ScaledHessian> scaled = scale_hessian(pool, Hessian(site, {}), 0.1);
  REQUIRE(scaled.is_ok());
  const std::vector<float> target = reference::normal_floats(random, rows * n, 0.02f);
  std::vector<uint8_t> support(target.size());
  std::vector<float> start = target;
  for (size_t i = 0; i < start.size(); ++i) {
    support[i] = random() % 2 == 0;
    start[i] = support[i] != 0 ? start[i] : 0;
  }
  double before = output_error(target, start, h);
  for (const int64_t steps : {1, 3, 10, 200}) {
    std::vector<float> weights = start;
    REQUIRE(refit(pool, scaled.value(), steps, target.data(), weights.data(), rows).is_ok());
    const double error = output_error(target, weights, h);
    CHECK(error < before * (1 + 1e-5));
    before = error;
    if (steps < 200) continue;
    const Matrix best = best_on_support(target, support, h);
    double worst = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      worst = std::max(worst, std::fabs(static_cast<double>(weights[i]) - best.data[i]));
    }
    CHECK(worst < 2e-5);  // of weights of size 0.02
  }
}

TEST_CASE("ALPS keeps the weights that ADMM written out in float64 keeps") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  for (const Budget& budget : {Budget::unstructured(0.5), Budget::unstructured(0.7), Budget::n_of_m(2, 4)}) {
    CAPTURE(budget.sparsity);
    // Where two weights are so close that rounding decides between them, another draw is compared.
    for (int draw = 0;; ++draw) {
      REQUIRE(draw < 100);
      const int64_t rows = 4;
      const int64_t n = 20;
      const SiteStatistics site = collect(pool, random, n);
      std::vector<float> weights = reference::normal_floats(random, rows * n);
      std::vector<double> lengths;
      const Matrix h = unit_diagonal(damped(site, 0.01), lengths);
      Matrix w(rows, n);
      for (size_t i = 0; i < weights.size(); ++i) {
        w.data[i] = static_cast<double>(weights[i]) * lengths[i % static_cast<size_t>(n)];
      }
      const Admm expected = admm(w, h, budget);
      if (expected.margin < 3e-5) continue;
      const Result<ScaledHessian> scaled = scale_hessian(pool, Hessian(site, {}), 0.01);
      REQUIRE(scaled.is_ok());
      const Result<AlpsReport> report = prune_alps(pool, scaled.value(), budget, weights.data(), rows);
      REQUIRE(report.is_ok());
      CHECK(report.value().steps == expected.steps);
      int64_t other = 0;
      for (size_t i = 0; i < weights.size(); ++i) other += (weights[i] != 0) != (expected.support[i] != 0);
      CHECK(other == 0);
      break;
    }
  }
}

TEST_CASE("ALPS meets its budget and leaves less error than SparseGPT") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  const int64_t rows = 130;
  const int64_t n = 200;
  for (const Budget& budget : {Budget::unstructured(0.6), Budget::n_of_m(2, 4), Budget::n_of_m(3, 8)}) {
    ThreadPool pool(2);
    const SiteStatistics site = collect(pool, random, n);
    const Matrix h = damped(site, 0.01);
    const Result<ScaledHessian> scaled = scale_hessian(pool, Hessian(site, {}), 0.01);
    REQUIRE(scaled.is_ok());
    const std::vector<float> dense = reference::normal_floats(random, rows * n, 0.02f);
    std::vector<float> pruned = dense;
    REQUIRE(prune_alps(pool, scaled.value(), budget, pruned.data(), rows).is_ok());
    if (budget.is_grouped()) {
      int64_t wrong = 0;
      for (auto at = pruned.begin(); at != pruned.end(); at += budget.group) {
        wrong += std::count(at, at + budget.group, 0.0f) != budget.group - budget.keep;
      }
      CHECK(wrong == 0);
    } else {
      CHECK(std::count(pruned.begin(), pruned.end(), 0.0f) == pruned_count(budget.sparsity, rows * n));
    }
    std::vector<float> greedy = dense;
    const Result<InverseFactor> factor = factor_inverse(pool, Hessian(site, {}), 0.01);
    REQUIRE(factor.is_ok());
    REQUIRE(prune_sparsegpt(pool, factor.value(), {.budget = budget}, greedy.data(), rows).is_ok());
    CHECK(output_error(dense, pruned, h) < 0.95 * output_error(dense, greedy, h));
    ThreadPool others(5);
    std::vector<float> again = dense;
    REQUIRE(prune_alps(others, scaled.value(), budget, again.data(), rows).is_ok());
    CHECK(again == pruned);
  }
}
