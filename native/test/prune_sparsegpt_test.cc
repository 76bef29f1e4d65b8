#include <doctest/doctest.h>

#include "prune/sparsegpt.h"
#include "prune_reference.h"

using namespace espalier;
using reference::Matrix;

namespace {

SiteStatistics collect(ThreadPool& pool, const std::vector<float>& x, int64_t tokens, int64_t width) {
  Result<SiteStatistics> site = SiteStatistics::create(width, true);
  REQUIRE(site.is_ok());
  site.value().add(pool, x.data(), tokens, width, nullptr);
  site.value().finish(pool);
  return std::move(site.value());
}

Matrix gram_of(const SiteStatistics& site) {
  Matrix h(site.width(), site.width());
  for (int64_t i = 0; i < h.rows; ++i) {
    for (int64_t j = i; j < h.cols; ++j) h.at(i, j) = h.at(j, i) = static_cast<double>(site.gram(i, j));
  }
  return h;
}

Matrix matrix_of(const std::vector<float>& values, int64_t rows, int64_t cols) {
  Matrix out(rows, cols);
  out.data.assign(values.begin(), values.end());
  return out;
}

// Σ over tokens of ‖(A - B)·x‖².
double output_error(const Matrix& a, const Matrix& b, const Matrix& gram) {
  double total = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t i = 0; i < a.cols; ++i) {
      for (int64_t j = 0; j < a.cols; ++j) {
        total += (a.at(r, i) - b.at(r, i)) * gram.at(i, j) * (a.at(r, j) - b.at(r, j));
      }
    }
  }
  return total;
}

struct Shape {
  int64_t rows;
  int64_t cols;
  Budget budget;
  int64_t block;
  bool dead;  // two input columns that no token activates
};

}  // namespace

TEST_CASE("SparseGPT equals the column-by-column algorithm with an explicit inverse in float64") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const Shape shapes[] = {
      {37, 200, Budget::unstructured(0.5), 128, false}, {100, 130, Budget::unstructured(0.7), 128, false},
      {10, 300, Budget::unstructured(0.3), 96, true},   {5, 20, Budget::unstructured(0.5), 128, false},
      {37, 200, Budget::n_of_m(2, 4), 128, false},      {20, 256, Budget::n_of_m(4, 8), 128, true},
      {9, 270, Budget::n_of_m(1, 3), 128, false},       {4, 320, Budget::n_of_m(70, 160), 128, false},
      {6, 40, Budget::unstructured(0), 16, true},
  };
  for (const Shape& shape : shapes) {
    CAPTURE(shape.rows);
    CAPTURE(shape.cols);
    CAPTURE(shape.budget.sparsity);
    CAPTURE(shape.budget.group);
    // Where two scores are so close that rounding decides between them, another draw is compared.
    for (int draw = 0;; ++draw) {
      REQUIRE(draw < 50);
      const int64_t tokens = 2 * shape.cols;
      std::vector<float> x = reference::correlated_inputs(random, tokens, shape.cols);
      if (shape.dead) {
        for (int64_t t = 0; t < tokens; ++t) {
          x[static_cast<size_t>(t * shape.cols + 3)] = x[static_cast<size_t>((t + 1) * shape.cols - 1)] = 0;
        }
      }
      const SiteStatistics site = collect(pool, x, tokens, shape.cols);
      std::vector<float> weights = reference::normal_floats(random, shape.rows * shape.cols, 0.02f);
      const int64_t block =
          shape.budget.is_grouped() ? shape.cols : shape.block;  // blocks of N:M make no difference to the outcome
      const reference::SparseGpt expected =
          reference::sparsegpt(matrix_of(weights, shape.rows, shape.cols), gram_of(site), 0.01, shape.budget.sparsity,
                               shape.budget.keep, shape.budget.group, block);
      if (expected.margin < 1e-4) continue;

      const Result<InverseFactor> factor = factor_inverse(pool, Hessian(site, {}), 0.01);
      REQUIRE(factor.is_ok());
      CHECK(factor.value().damping == 0.01);
      CHECK(factor.value().dead.size() == (shape.dead ? 2 : 0));
      REQUIRE(prune_sparsegpt(pool, factor.value(), {.budget = shape.budget, .block = shape.block}, weights.data(),
                              shape.rows)
                  .is_ok());
      int64_t other_choice = 0;
      double worst = 0;
      for (size_t i = 0; i < weights.size(); ++i) {
        const bool dead = shape.dead && (static_cast<int64_t>(i) % shape.cols == 3 ||
                                         static_cast<int64_t>(i) % shape.cols == shape.cols - 1);
        other_choice += !dead && (weights[i] != 0) != (expected.mask[i] != 0);
        worst = std::max(worst, std::fabs(static_cast<double>(weights[i]) - expected.weights.data[i]));
      }
      CHECK(other_choice == 0);
      CHECK(worst < 2e-6);  // of weights of size 0.02
      break;
    }
  }
}

TEST_CASE("the update makes the output error smaller than the same mask without it") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t rows = 30;
  const int64_t cols = 200;
  const std::vector<float> x = reference::correlated_inputs(random, 600, cols);
  const SiteStatistics site = collect(pool, x, 600, cols);
  const Matrix gram = gram_of(site);
  const Result<InverseFactor> factor = factor_inverse(pool, Hessian(site, {}), 0.01);
  REQUIRE(factor.is_ok());
  for (const Budget& budget : {Budget::unstructured(0.5), Budget::unstructured(0.7), Budget::n_of_m(2, 4)}) {
    const std::vector<float> dense = reference::normal_floats(random, rows * cols, 0.02f);
    std::vector<float> pruned = dense;
    REQUIRE(prune_sparsegpt(pool, factor.value(), {.budget = budget}, pruned.data(), rows).is_ok());
    std::vector<float> masked = dense;
    for (size_t i = 0; i < masked.size(); ++i) masked[i] = pruned[i] != 0 ? masked[i] : 0;
    const Matrix original = matrix_of(dense, rows, cols);
    CHECK(output_error(original, matrix_of(pruned, rows, cols), gram) <
          0.9 * output_error(original, matrix_of(masked, rows, cols), gram));
  }
}

TEST_CASE("every group of m keeps n, and every block loses its share") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t rows = 130;
  const int64_t cols = 240;
  const std::vector<float> x = reference::correlated_inputs(random, 500, cols);
  const SiteStatistics site = collect(pool, x, 500, cols);
  const Result<InverseFactor> factor = factor_inverse(pool, Hessian(site, {}), 0.01);
  REQUIRE(factor.is_ok());
  std::vector<float> weights = reference::normal_floats(random, rows * cols);
  REQUIRE(prune_sparsegpt(pool, factor.value(), {.budget = Budget::n_of_m(3, 8)}, weights.data(), rows).is_ok());
  for (auto begin = weights.begin(); begin != weights.end(); begin += 8) {
    REQUIRE(std::count(begin, begin + 8, 0.0f) == 5);
  }
  weights = reference::normal_floats(random, rows * cols);
  REQUIRE(prune_sparsegpt(pool, factor.value(), {.budget = Budget::unstructured(0.4)}, weights.data(), rows).is_ok());
  for (const auto& [first, end] : {std::pair<int64_t, int64_t>{0, 128}, {128, 240}}) {
    int64_t zeros = 0;
    for (int64_t r = 0; r < rows; ++r) {
      zeros += std::count(weights.begin() + r * cols + first, weights.begin() + r * cols + end, 0.0f);
    }
    CHECK(zeros == pruned_count(0.4, rows * (end - first)));
  }
}

TEST_CASE("SparseGPT gives the same bytes for any number of threads") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  const int64_t rows = 300;
  const int64_t cols = 330;
  const std::vector<float> x = reference::correlated_inputs(random, 400, cols);
  const std::vector<float> dense = reference::normal_floats(random, rows * cols, 0.02f);
  for (const Budget& budget : {Budget::unstructured(0.5), Budget::n_of_m(1, 3)}) {
    std::vector<float> first;
    for (const int threads : {1, 2, 3, 5}) {
      ThreadPool pool(threads);
      const SiteStatistics site = collect(pool, x, 400, cols);
      const Result<InverseFactor> factor = factor_inverse(pool, Hessian(site, {}), 0.01);
      REQUIRE(factor.is_ok());
      std::vector<float> weights = dense;
      REQUIRE(prune_sparsegpt(pool, factor.value(), {.budget = budget}, weights.data(), rows).is_ok());
      if (first.empty()) first = weights;
      CHECK(weights == first);
    }
  }
}

TEST_CASE("fewer tokens than columns leave finite weights, and without damping it is added") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t cols = 150;
  const std::vector<float> x = reference::correlated_inputs(random, 5, cols);
  const SiteStatistics site = collect(pool, x, 5, cols);
  for (const double damping : {0.01, 0.0}) {
    const Result<InverseFactor> factor = factor_inverse(pool, Hessian(site, {}), damping);
    REQUIRE(factor.is_ok());
    if (damping == 0) {
      CHECK(factor.value().damping > 0);
    } else {
      CHECK(factor.value().damping == damping);
    }
    std::vector<float> weights = reference::normal_floats(random, 20 * cols);
    REQUIRE(prune_sparsegpt(pool, factor.value(), {.budget = Budget::unstructured(0.5)}, weights.data(), 20).is_ok());
    CHECK(std::all_of(weights.begin(), weights.end(), [](float w) { return std::isfinite(w); }));
    CHECK(std::count(weights.begin(), weights.end(), 0.0f) >= 10 * cols);
  }
}

TEST_CASE("the scale of the inputs does not change what is pruned") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t cols = 140;
  std::vector<float> x = reference::correlated_inputs(random, 300, cols);
  for (int64_t t = 0; t < 300; ++t) x[static_cast<size_t>(t * cols)] = 0;
  const std::vector<float> dense = reference::normal_floats(random, 25 * cols);
  std::vector<std::vector<float>> results;
  for (const float scale : {1.0f, 1024.0f, 1.0f / 4096}) {
    std::vector<float> scaled = x;
    for (float& value : scaled) value *= scale;  // a power of two: exact
    const SiteStatistics collected = collect(pool, scaled, 300, cols);
    const Result<InverseFactor> factor = factor_inverse(pool, Hessian(collected, {}), 0.01);
    REQUIRE(factor.is_ok());
    std::vector<float> weights = dense;
    REQUIRE(prune_sparsegpt(pool, factor.value(), {.budget = Budget::n_of_m(2, 4)}, weights.data(), 25).is_ok());
    results.push_back(weights);
    CHECK(weights == results.front());
  }
}
