#include "prune/prune_matrix.h"

#include <doctest/doctest.h>

#include <limits>

#include "prune_reference.h"

using namespace espalier;

namespace {

SiteStatistics site_of(ThreadPool& pool, const std::vector<float>& x, int64_t tokens, int64_t width, bool gram) {
  Result<SiteStatistics> site = SiteStatistics::create(width, gram);
  REQUIRE(site.is_ok());
  site.value().add(pool, x.data(), tokens, width, nullptr);
  return std::move(site.value());
}

PreparedSite prepare(ThreadPool& pool, const MethodPlan& plan, SiteStatistics* statistics) {
  Result<PreparedSite> site = prepare_site(pool, plan, statistics);
  REQUIRE_MESSAGE(site.is_ok(), site.status().message());
  return std::move(site.value());
}

MatrixReport prune(ThreadPool& pool, const MethodPlan& plan, const PreparedSite& site, std::vector<float>& weights,
                   int64_t rows, int64_t cols) {
  const Result<MatrixReport> report = prune_matrix(pool, plan, site, weights.data(), rows, cols);
  REQUIRE_MESSAGE(report.is_ok(), report.status().message());
  CHECK(report.value().zeros == std::count(weights.begin(), weights.end(), 0.0f));
  CHECK(report.value().zeros + report.value().kept == rows * cols);
  CHECK(report.value().sparsity ==
        doctest::Approx(static_cast<double>(report.value().zeros) / static_cast<double>(rows * cols)));
  return report.value();
}

}  // namespace

TEST_CASE("magnitude takes one threshold for the matrix and leaves the rest as it was") {
  ThreadPool pool(2);
  const MethodPlan plan = MethodPlan::magnitude(Budget::unstructured(0.5));
  std::vector<float> weights = {0.1f, -5, 4, -0.3f, 3, 0.2f, -2, 0.4f};
  const MatrixReport report = prune(pool, plan, prepare(pool, plan, nullptr), weights, 2, 4);
  // The fourth of 0.1 0.2 0.3 0.4 2 3 4 5 and what is below it.
  CHECK(weights == std::vector<float>{0, -5, 4, 0, 3, 0, -2, 0});
  CHECK(report.zeros == 4);
  CHECK_FALSE(report.fallback);
  for (const float w : weights) CHECK_FALSE((w == 0 && std::signbit(w)));
}

TEST_CASE("activation scores prune each row by weight times the length of the input") {
  ThreadPool pool(2);
  // Column norms 5, 1, 0, 2.
  SiteStatistics site = site_of(pool, {3, 0, 0, 2, 4, 1, 0, 0}, 2, 4, false);
  std::vector<float> weights = {1, 4, 9, 3, -1, 6, 9, -2};
  const MethodPlan plan = MethodPlan::activation(Budget::unstructured(0.5));
  // Scores: 5 4 0 6 and 5 6 0 4.
  prune(pool, plan, prepare(pool, plan, &site), weights, 2, 4);
  CHECK(weights == std::vector<float>{1, 0, 0, 3, -1, 6, 0, 0});
  weights = {1, 4, 9, 3, -1, 6, 9, -2};
  const MethodPlan grouped = MethodPlan::activation(Budget::n_of_m(1, 2));
  prune(pool, grouped, prepare(pool, grouped, &site), weights, 2, 4);
  CHECK(weights == std::vector<float>{1, 0, 0, 3, 0, 6, 0, -2});
}

TEST_CASE("relative importance weighs a weight against its row and its column, times the root of its input's length") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t rows = 19;
  const int64_t cols = 300;
  std::vector<float> x = reference::correlated_inputs(random, 50, cols);
  SiteStatistics site = site_of(pool, x, 50, cols, false);
  const std::vector<float> dense = reference::normal_floats(random, rows * cols);
  const MethodPlan plan = MethodPlan::relative(Budget::unstructured(0.4));
  std::vector<float> weights = dense;
  prune(pool, plan, prepare(pool, plan, &site), weights, rows, cols);
  const auto size = [&](int64_t r, int64_t j) {
    return std::fabs(static_cast<double>(dense[static_cast<size_t>(r * cols + j)]));
  };
  int64_t wrong = 0;
  for (int64_t r = 0; r < rows; ++r) {
    double by_row = 0;
    for (int64_t j = 0; j < cols; ++j) by_row += size(r, j);
    double highest_gone = 0;
    double lowest_kept = std::numeric_limits<double>::infinity();
    int64_t gone = 0;
    for (int64_t j = 0; j < cols; ++j) {
      double by_column = 0;
      for (int64_t i = 0; i < rows; ++i) by_column += size(i, j);
      double norm = 0;
      for (int64_t t = 0; t < 50; ++t) norm += std::pow(static_cast<double>(x[static_cast<size_t>(t * cols + j)]), 2);
      const double score = (size(r, j) / by_column + size(r, j) / by_row) * std::sqrt(std::sqrt(norm));
      const float now = weights[static_cast<size_t>(r * cols + j)];
      wrong += now != 0 && now != dense[static_cast<size_t>(r * cols + j)];
      gone += now == 0;
      double& end = now == 0 ? highest_gone : lowest_kept;
      end = now == 0 ? std::max(end, score) : std::min(end, score);
    }
    CHECK(gone == 120);
    CHECK(highest_gone < lowest_kept * (1 + 1e-6));
  }
  CHECK(wrong == 0);

  // By hand, norms 1: row sums 6 and 6, column sums 4, 5 and 3. A large weight among large ones of its column goes.
  SiteStatistics even = site_of(pool, {1, 1, 1}, 1, 3, false);
  weights = {3, 2, 1, 1, 3, 2};
  const MethodPlan third = MethodPlan::relative(Budget::unstructured(0.34));
  // 3/4+3/6 2/5+2/6 1/3+1/6 and 1/4+1/6 3/5+3/6 2/3+2/6
  prune(pool, third, prepare(pool, third, &even), weights, 2, 3);
  CHECK(weights == std::vector<float>{3, 2, 0, 0, 3, 2});
}

TEST_CASE("SparseGPT on orthogonal inputs is a choice by score with no update") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t cols = 160;
  std::vector<float> x(static_cast<size_t>(cols * cols), 0.0f);
  for (int64_t j = 0; j < cols; ++j) x[static_cast<size_t>(j * cols + j)] = 2;
  SiteStatistics site = site_of(pool, x, cols, cols, true);
  const std::vector<float> dense = reference::normal_floats(random, 50 * cols);
  const MethodPlan plan = MethodPlan::sparsegpt(Budget::n_of_m(2, 4));
  const MethodPlan magnitude = MethodPlan::magnitude(Budget::n_of_m(2, 4));
  std::vector<float> weights = dense;
  std::vector<float> expected = dense;
  const MatrixReport report = prune(pool, plan, prepare(pool, plan, &site), weights, 50, cols);
  prune(pool, magnitude, prepare(pool, magnitude, nullptr), expected, 50, cols);
  CHECK(weights == expected);
  CHECK(report.damping == 0.01);
}

TEST_CASE("an expert without tokens falls back to magnitude among the same weights and says so") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t rows = 30;
  const int64_t cols = 200;
  const std::vector<float> dense = reference::normal_floats(random, rows * cols);
  const std::vector<float> zeros(static_cast<size_t>(4 * cols), 0.0f);
  for (const int64_t tokens : {0, 4}) {
    SiteStatistics site = site_of(pool, zeros, tokens, cols, true);
    for (const MethodPlan& plan :
         {MethodPlan::activation(Budget::unstructured(0.6)), MethodPlan::activation(Budget::n_of_m(2, 4)),
          MethodPlan::sparsegpt(Budget::unstructured(0.6)), MethodPlan::sparsegpt(Budget::n_of_m(2, 4))}) {
      const bool by_block = plan.update == Update::kSparseGpt && !plan.budget.is_grouped();
      std::vector<float> weights = dense;
      const MatrixReport report = prune(pool, plan, prepare(pool, plan, &site), weights, rows, cols);
      CHECK(report.fallback);
      int64_t wrong = 0;
      const int64_t width = plan.budget.is_grouped() ? plan.budget.group : cols;
      for (size_t i = 0; i < dense.size() && !by_block; i += static_cast<size_t>(width)) {
        std::vector<double> scores;
        for (int64_t j = 0; j < width; ++j) scores.push_back(std::fabs(dense[i + static_cast<size_t>(j)]));
        std::vector<float> expected(dense.begin() + static_cast<int64_t>(i),
                                    dense.begin() + static_cast<int64_t>(i) + width);
        for (const size_t j : reference::smallest(scores, plan.budget.is_grouped() ? 2 : 120)) expected[j] = 0;
        wrong += !std::equal(expected.begin(), expected.end(), weights.begin() + static_cast<int64_t>(i));
      }
      CHECK(wrong == 0);
      for (const auto& [first, end] : {std::pair<int64_t, int64_t>{0, 128}, {128, 200}}) {
        if (!by_block) continue;
        double largest_gone = 0;
        double smallest_kept = std::numeric_limits<double>::infinity();
        int64_t gone = 0;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = first; c < end; ++c) {
            const auto i = static_cast<size_t>(r * cols + c);
            const double size = std::fabs(static_cast<double>(dense[i]));
            if (weights[i] == 0) {
              largest_gone = std::max(largest_gone, size);
              ++gone;
            } else {
              smallest_kept = std::min(smallest_kept, size);
              CHECK(weights[i] == dense[i]);
            }
          }
        }
        CHECK(largest_gone < smallest_kept);
        CHECK(gone == pruned_count(0.6, rows * (end - first)));
      }
    }
  }
}

TEST_CASE("a weight that is not finite is refused with its place, and nothing is changed") {
  ThreadPool pool(3);
  const MethodPlan plan = MethodPlan::magnitude(Budget::unstructured(0.5));
  const PreparedSite site = prepare(pool, plan, nullptr);
  std::vector<float> weights(100 * 10, 1.0f);
  weights[437] = std::numeric_limits<float>::quiet_NaN();
  weights[902] = -std::numeric_limits<float>::infinity();
  const Result<MatrixReport> report = prune_matrix(pool, plan, site, weights.data(), 100, 10);
  REQUIRE_FALSE(report.is_ok());
  CHECK(report.status().code() == Code::kNonFinite);
  CHECK(report.status().message() == "2 of 1000 weights are NaN or infinite, the first at row 43, column 7");
  CHECK(std::count(weights.begin(), weights.end(), 1.0f) == 998);
}

TEST_CASE("calibration inputs that are not finite are refused") {
  ThreadPool pool(1);
  for (const float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    SiteStatistics site = site_of(pool, {1, 2, value, 4}, 2, 2, true);
    for (const MethodPlan& plan :
         {MethodPlan::activation(Budget::unstructured(0.5)), MethodPlan::sparsegpt(Budget::unstructured(0.5))}) {
      CHECK(prepare_site(pool, plan, &site).status().code() == Code::kNonFinite);
    }
  }
  // Finite, but its square is not in float32.
  SiteStatistics site = site_of(pool, {1e30f, 1, 1, 1}, 2, 2, true);
  CHECK(prepare_site(pool, MethodPlan::sparsegpt(Budget::unstructured(0.5)), &site).status().code() ==
        Code::kNonFinite);
  // And the other way round: squares that vanish in float32 count as no input.
  SiteStatistics tiny = site_of(pool, {1e-30f, 1e-30f}, 1, 2, true);
  CHECK(prepare(pool, MethodPlan::sparsegpt(Budget::unstructured(0.5)), &tiny).fallback);
}

TEST_CASE("plans, sites and matrices that do not go together are usage errors") {
  ThreadPool pool(1);
  MethodPlan plan = MethodPlan::sparsegpt(Budget::unstructured(0.5));
  CHECK(prepare_site(pool, plan, nullptr).status().code() == Code::kUsage);
  SiteStatistics without_gram = site_of(pool, {1, 2, 3, 4}, 1, 4, false);
  CHECK(prepare_site(pool, plan, &without_gram).status().code() == Code::kUsage);
  CHECK(prepare_site(pool, MethodPlan::activation(Budget::unstructured(0.5)), nullptr).status().code() == Code::kUsage);

  plan.update = Update::kNone;
  CHECK(check_plan(plan).code() == Code::kUsage);
  plan = MethodPlan::sparsegpt(Budget::unstructured(0.5));
  plan.comparison = Comparison::kRow;
  CHECK(check_plan(plan).code() == Code::kUsage);
  plan = MethodPlan::sparsegpt(Budget::unstructured(0.5));
  plan.damping = -1;
  CHECK(check_plan(plan).code() == Code::kUsage);
  plan.damping = 0.01;
  plan.block = 0;
  CHECK(check_plan(plan).code() == Code::kUsage);
  CHECK(check_plan(MethodPlan::magnitude(Budget::unstructured(1.5))).code() == Code::kUsage);

  const MethodPlan activation = MethodPlan::activation(Budget::n_of_m(2, 4));
  const PreparedSite site = prepare(pool, activation, &without_gram);
  std::vector<float> weights(24, 1.0f);
  CHECK(prune_matrix(pool, activation, site, weights.data(), 3, 8).status().code() == Code::kUsage);
  CHECK(prune_matrix(pool, activation, site, weights.data(), 4, 6).status().code() == Code::kUsage);
  CHECK(prune_matrix(pool, activation, site, weights.data(), 0, 4).status().code() == Code::kUsage);
  CHECK(prune_matrix(pool, activation, site, weights.data(), 6, 4).is_ok());
}
