#include "prune/channel_permutation.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "prune/expert_weights.h"
#include "test_main.h"

using namespace espalier;

namespace {

std::vector<float> random_scores(std::mt19937& random, int64_t rows, int64_t cols) {
  std::vector<float> scores = test::normal_floats(random, static_cast<size_t>(rows * cols));
  const std::vector<float> lengths = test::normal_floats(random, static_cast<size_t>(cols));
  for (size_t i = 0; i < scores.size(); ++i) {
    scores[i] = std::fabs(scores[i]) * std::exp(lengths[i % static_cast<size_t>(cols)]);
  }
  return scores;
}

double kept(const std::vector<float>& scores, int64_t cols, const Budget& budget, const std::vector<int32_t>& order) {
  double total = 0;
  const auto group = static_cast<size_t>(budget.group);
  for (size_t row = 0; row < scores.size(); row += static_cast<size_t>(cols)) {
    for (size_t first = 0; first < order.size(); first += group) {
      std::vector<double> own;
      for (size_t c = 0; c < group; ++c) {
        own.push_back(static_cast<double>(scores[row + static_cast<size_t>(order[first + c])]));
      }
      std::sort(own.begin(), own.end(), std::greater<>());
      for (int64_t k = 0; k < budget.keep; ++k) total += own[static_cast<size_t>(k)];
    }
  }
  return total;
}

std::vector<int32_t> identity(int64_t count) {
  std::vector<int32_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// The most that any way of sharing the columns out to groups keeps: the first free column with every choice of others.
double best_of_all(const std::vector<float>& scores, int64_t cols, const Budget& budget, std::vector<int32_t>& order,
                   std::vector<bool>& used) {
  if (static_cast<int64_t>(order.size()) == cols) return kept(scores, cols, budget, order);
  double best = 0;
  const bool begins = static_cast<int64_t>(order.size()) % budget.group == 0;
  for (int32_t c = begins ? 0 : order.back() + 1; c < cols; ++c) {
    if (used[static_cast<size_t>(c)]) continue;
    used[static_cast<size_t>(c)] = true;
    order.push_back(c);
    best = std::max(best, best_of_all(scores, cols, budget, order, used));
    order.pop_back();
    used[static_cast<size_t>(c)] = false;
    if (begins) break;
  }
  return best;
}

}  // namespace

TEST_CASE("an order of channels is a permutation, keeps at least what was kept, and says the truth about it") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool one(1);
  ThreadPool three(3);
  struct Shape {
    int64_t rows, cols, keep, group;
  };
  // 481 groups of 2 are more than are assigned at once.
  for (const Shape& shape : {Shape{9, 8, 2, 4}, Shape{30, 192, 2, 4}, Shape{17, 96, 4, 8}, Shape{5, 128, 16, 32},
                             Shape{600, 32, 1, 2}, Shape{40, 962, 1, 2}, Shape{3, 4, 3, 4}}) {
    CAPTURE(shape.rows);
    CAPTURE(shape.cols);
    const Budget budget = Budget::n_of_m(shape.keep, shape.group);
    const std::vector<float> scores = random_scores(random, shape.rows, shape.cols);
    const auto found = permute_for_groups(three, scores.data(), shape.rows, shape.cols, budget, nullptr);
    REQUIRE(found.is_ok());
    std::vector<int32_t> sorted = found.value();
    std::sort(sorted.begin(), sorted.end());
    CHECK(sorted == identity(shape.cols));
    const double before = kept(scores, shape.cols, budget, identity(shape.cols));
    const double after = kept(scores, shape.cols, budget, found.value());
    CHECK(after >= before * (1 - 1e-12));
    if (shape.cols > 100) CHECK(after > before);
    CHECK(kept_score(three, scores.data(), shape.rows, shape.cols, budget, {}) == doctest::Approx(before));
    CHECK(kept_score(three, scores.data(), shape.rows, shape.cols, budget, found.value()) == doctest::Approx(after));
    const auto again = permute_for_groups(one, scores.data(), shape.rows, shape.cols, budget, nullptr);
    REQUIRE(again.is_ok());
    CHECK(again.value() == found.value());
  }
}

TEST_CASE("of few columns the order found is nearly the best of all, mostly the best") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(1);
  int found_best = 0;
  double gained = 0;
  double possible = 0;
  constexpr int kDraws = 60;
  for (int draw = 0; draw < kDraws; ++draw) {
    const Budget budget = draw % 2 == 0 ? Budget::n_of_m(2, 4) : Budget::n_of_m(1, 2);
    const int64_t cols = 8;
    const std::vector<float> scores = random_scores(random, 4, cols);
    std::vector<int32_t> order;
    std::vector<bool> used(static_cast<size_t>(cols), false);
    const double best = best_of_all(scores, cols, budget, order, used);
    const auto found = permute_for_groups(pool, scores.data(), 4, cols, budget, nullptr);
    REQUIRE(found.is_ok());
    const double now = kept(scores, cols, budget, found.value());
    const double before = kept(scores, cols, budget, identity(cols));
    CHECK(now <= best * (1 + 1e-12));
    found_best += now >= best * (1 - 1e-9) ? 1 : 0;
    gained += now - before;
    possible += best - before;
  }
  MESSAGE(found_best << " of " << kDraws << " are best, " << gained / possible << " of what can be gained");
  CHECK(found_best >= kDraws / 3);
  CHECK(gained >= 0.8 * possible);
}

TEST_CASE("columns that crowd in one group are spread out") {
  // 2:4 of columns that are 1 in the first group and 0 in the second keeps half; two in each keep all.
  const std::vector<float> scores = {1, 1, 1, 1, 0, 0, 0, 0};
  ThreadPool pool(1);
  const auto found = permute_for_groups(pool, scores.data(), 1, 8, Budget::n_of_m(2, 4), nullptr);
  REQUIRE(found.is_ok());
  CHECK(kept(scores, 8, Budget::n_of_m(2, 4), found.value()) == 4);
}

TEST_CASE("what cannot be permuted is refused, and a permutation that is stopped says so") {
  ThreadPool pool(1);
  const std::vector<float> scores(24, 1.0f);
  CHECK(permute_for_groups(pool, scores.data(), 2, 12, Budget::unstructured(0.5), nullptr).status().code() ==
        Code::kUsage);
  CHECK(permute_for_groups(pool, scores.data(), 2, 12, Budget::n_of_m(4, 8), nullptr).status().code() == Code::kUsage);
  const std::atomic<bool> cancel{true};
  CHECK(permute_for_groups(pool, scores.data(), 2, 12, Budget::n_of_m(2, 4), &cancel).status().code() ==
        Code::kAborted);
}

TEST_CASE("an expert with its channels in another order gives the same in float64") {
  std::mt19937 random(test::fresh_seed());
  const int64_t hidden = 12;
  const int64_t width = 20;
  const auto values = [&] { return test::normal_floats(random, static_cast<size_t>(width * hidden)); };
  const std::vector<float> gate = values();
  const std::vector<float> up = values();
  const std::vector<float> down = values();
  const std::vector<float> x = test::normal_floats(random, static_cast<size_t>(hidden));
  const auto output = [&](const std::vector<float>& w1, const std::vector<float>& w3, const std::vector<float>& w2) {
    std::vector<double> out(static_cast<size_t>(hidden), 0.0);
    for (size_t i = 0; i < static_cast<size_t>(width); ++i) {
      double g = 0;
      double u = 0;
      for (size_t h = 0; h < static_cast<size_t>(hidden); ++h) {
        g += static_cast<double>(w1[i * static_cast<size_t>(hidden) + h]) * static_cast<double>(x[h]);
        u += static_cast<double>(w3[i * static_cast<size_t>(hidden) + h]) * static_cast<double>(x[h]);
      }
      const double inner = g / (1 + std::exp(-g)) * u;
      for (size_t h = 0; h < static_cast<size_t>(hidden); ++h) {
        out[h] += inner * static_cast<double>(w2[h * static_cast<size_t>(width) + i]);
      }
    }
    return out;
  };
  std::vector<int32_t> order = identity(width);
  std::shuffle(order.begin(), order.end(), random);
  const std::vector<float> moved = in_channel_order(down, Role::kDown, width, order);
  const std::vector<double> before = output(gate, up, down);
  const std::vector<double> after =
      output(in_channel_order(gate, Role::kGate, hidden, order), in_channel_order(up, Role::kUp, hidden, order), moved);
  for (size_t h = 0; h < before.size(); ++h) CHECK(after[h] == doctest::Approx(before[h]).epsilon(1e-12));
  for (size_t h = 0; h < static_cast<size_t>(hidden); ++h) {
    for (size_t i = 0; i < order.size(); ++i) {
      REQUIRE(moved[h * order.size() + i] == down[h * order.size() + static_cast<size_t>(order[i])]);
    }
  }
}
