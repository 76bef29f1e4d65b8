#include <doctest/doctest.h>

#include "prune/balance.h"
#include "prune/mask.h"
#include "prune/score.h"
#include "prune_reference.h"

using namespace espalier;

namespace {

// Half of the draws have few distinct values, so that ties decide.
std::vector<float> random_scores(std::mt19937_64& random, int64_t count, bool ties) {
  std::vector<float> scores = reference::normal_floats(random, count);
  for (float& score : scores) score = ties ? std::floor(std::fabs(score) * 4) : std::fabs(score);
  return scores;
}

std::vector<uint8_t> mask_by_sorting(const std::vector<float>& scores, int64_t group, int64_t zeros) {
  std::vector<uint8_t> mask(scores.size(), 1);
  for (size_t start = 0; start < scores.size(); start += static_cast<size_t>(group)) {
    const auto begin = scores.begin() + static_cast<int64_t>(start);
    for (const size_t i : reference::smallest(std::vector<double>(begin, begin + group), zeros)) mask[start + i] = 0;
  }
  return mask;
}

}  // namespace

TEST_CASE("the value at every rank is the one that sorting gives") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(3);
  const int64_t rows = 13;
  const int64_t cols = 17;
  const int64_t stride = 23;
  for (int draw = 0; draw < 4; ++draw) {
    std::vector<float> values = random_scores(random, rows * stride, draw % 2 == 1);
    // From zero over denormal to huge.
    if (draw >= 2) {
      for (float& value : values) value = std::ldexp(value, std::uniform_int_distribution<int>(-160, 120)(random));
    }
    std::vector<float> sorted;
    for (int64_t r = 0; r < rows; ++r) {
      const auto row = values.begin() + r * stride;
      sorted.insert(sorted.end(), row, row + cols);
    }
    std::sort(sorted.begin(), sorted.end());
    for (int64_t rank = 0; rank < rows * cols; ++rank) {
      REQUIRE(select_rank(pool, values.data(), rows, cols, stride, rank) == sorted[static_cast<size_t>(rank)]);
    }
  }
}

TEST_CASE("a threshold zeroes the smallest floor(p x size) and their ties, block by block") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t rows = 40;
  const int64_t cols = 150;
  for (const bool ties : {false, true}) {
    for (const int64_t block : {150, 64}) {
      for (const double sparsity : {0.0, 0.1, 0.5, 0.73, 0.999}) {
        CAPTURE(block);
        CAPTURE(sparsity);
        const std::vector<float> scores = random_scores(random, rows * cols, ties);
        std::vector<uint8_t> mask(scores.size(), 7);
        mask_threshold(pool, scores.data(), rows, cols, block, sparsity, mask.data());
        for (int64_t first = 0; first < cols; first += block) {
          const int64_t end = std::min(cols, first + block);
          std::vector<float> sorted;
          for (int64_t r = 0; r < rows; ++r) {
            sorted.insert(sorted.end(), scores.begin() + r * cols + first, scores.begin() + r * cols + end);
          }
          std::sort(sorted.begin(), sorted.end());
          const auto zeros = static_cast<size_t>(std::floor(sparsity * static_cast<double>(sorted.size())));
          int64_t wrong = 0;
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = first; c < end; ++c) {
              const auto i = static_cast<size_t>(r * cols + c);
              const bool zeroed = zeros > 0 && scores[i] <= sorted[zeros - 1];
              wrong += mask[i] != (zeroed ? 0 : 1);
            }
          }
          CHECK(wrong == 0);
        }
      }
    }
  }
}

TEST_CASE("each row loses exactly floor(p x columns) weights, the lower column first among equals") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  for (const bool ties : {false, true}) {
    for (const int64_t cols : {1, 7, 96, 333}) {
      for (const double sparsity : {0.0, 0.29, 0.5, 0.7, 0.99}) {
        CAPTURE(cols);
        CAPTURE(sparsity);
        const int64_t rows = 50;
        const std::vector<float> scores = random_scores(random, rows * cols, ties);
        std::vector<uint8_t> mask(scores.size(), 7);
        mask_rows(pool, scores.data(), rows, cols, sparsity, mask.data());
        const auto zeros = static_cast<int64_t>(std::floor(sparsity * static_cast<double>(cols)));
        CHECK(mask == mask_by_sorting(scores, cols, zeros));
        for (int64_t r = 0; r < rows; ++r) {
          REQUIRE(std::count(mask.begin() + r * cols, mask.begin() + (r + 1) * cols, 0) == zeros);
        }
      }
    }
  }
}

TEST_CASE("n of every m consecutive inputs stay, the lower column first to go among equals") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t patterns[][2] = {{1, 2}, {2, 4}, {4, 8}, {1, 4}, {3, 5}, {7, 16}, {50, 120}};
  for (const bool ties : {false, true}) {
    for (const auto& pattern : patterns) {
      const int64_t keep = pattern[0];
      const int64_t group = pattern[1];
      CAPTURE(keep);
      CAPTURE(group);
      const int64_t rows = 37;
      const int64_t cols = 3 * group;
      const std::vector<float> scores = random_scores(random, rows * cols, ties);
      std::vector<uint8_t> mask(scores.size(), 7);
      mask_groups(pool, scores.data(), rows, cols, keep, group, mask.data());
      CHECK(mask == mask_by_sorting(scores, group, group - keep));
      for (auto begin = mask.begin(); begin != mask.end(); begin += group) {
        REQUIRE(std::count(begin, begin + group, 1) == keep);
      }
    }
  }
}

TEST_CASE("masks have the same bytes for any number of threads") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  const int64_t rows = 600;
  const int64_t cols = 512;
  const std::vector<float> scores = random_scores(random, rows * cols, true);
  std::vector<uint8_t> first;
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    std::vector<uint8_t> mask(3 * scores.size(), 7);
    mask_threshold(pool, scores.data(), rows, cols, 128, 0.6, mask.data());
    mask_rows(pool, scores.data(), rows, cols, 0.6, mask.data() + scores.size());
    mask_groups(pool, scores.data(), rows, cols, 2, 4, mask.data() + 2 * scores.size());
    if (first.empty()) first = mask;
    CHECK(mask == first);
  }
}

TEST_CASE("patterns out of range, or that do not divide the inputs, are usage errors") {
  CHECK(check_budget(Budget::unstructured(0), 10).is_ok());
  CHECK(check_budget(Budget::unstructured(0.999), 10).is_ok());
  CHECK(check_budget(Budget::n_of_m(2, 4), 12).is_ok());
  const Budget bad[] = {Budget::unstructured(1), Budget::unstructured(-0.1), Budget::unstructured(std::nan("")),
                        Budget::n_of_m(4, 4),    Budget::n_of_m(0, 4),       Budget::n_of_m(5, 4),
                        Budget::n_of_m(2, 5),    Budget::n_of_m(1, -2)};
  for (const Budget& budget : bad) {
    CAPTURE(budget.sparsity);
    CAPTURE(budget.group);
    CHECK(check_budget(budget, 12).code() == Code::kUsage);
  }
  CHECK(check_budget(Budget::n_of_m(2, 5), 12).message().find("2:5 does not fit") != std::string::npos);
}

TEST_CASE("scores are magnitudes, times the length of the input where there is one") {
  ThreadPool pool(2);
  const std::vector<float> weights = {1, -2, 3, -4, 0, 6};
  const std::vector<float> norms = {2, 0, 0.5f};
  std::vector<float> scores(6, -1);
  score_magnitude(pool, weights.data(), 2, 3, scores.data());
  CHECK(scores == std::vector<float>{1, 2, 3, 4, 0, 6});
  score_activation(pool, weights.data(), 2, 3, norms.data(), scores.data());
  CHECK(scores == std::vector<float>{2, 0, 1.5f, 8, 0, 3});
}

TEST_CASE("matrices that compete lose what is smallest among all their weights, none more than halfway to everything") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  // The last is so small that it would go as a whole.
  std::vector<std::vector<float>> scores;
  std::vector<int64_t> sizes;
  for (const float scale : {1.0f, 3.0f, 0.5f, 1e-6f}) {
    std::vector<float> own = reference::normal_floats(random, 1000 + 100 * static_cast<int64_t>(sizes.size()), scale);
    for (float& score : own) score = std::fabs(score);
    sizes.push_back(static_cast<int64_t>(own.size()));
    scores.push_back(std::move(own));
  }
  const double sparsity = 0.5;
  const auto result = balanced_sparsities(pool, sparsity, sizes, [&](size_t i) -> Result<std::span<const float>> {
    return std::span<const float>(scores[i]);
  });
  REQUIRE(result.is_ok());
  std::vector<int64_t> zeros;
  int64_t total = 0;
  int64_t all = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    zeros.push_back(pruned_count(result.value()[i], sizes[i]));
    total += zeros.back();
    all += sizes[i];
  }
  CHECK(total == pruned_count(sparsity, all));
  CHECK(zeros[3] == 975);  // three quarters of 1300
  std::vector<float> pooled;
  for (size_t i = 0; i < 3; ++i) pooled.insert(pooled.end(), scores[i].begin(), scores[i].end());
  std::sort(pooled.begin(), pooled.end());
  const float threshold = pooled[static_cast<size_t>(total - 975 - 1)];
  for (size_t i = 0; i < 3; ++i) {
    CHECK(zeros[i] == std::count_if(scores[i].begin(), scores[i].end(), [&](float s) { return s <= threshold; }));
  }
  CHECK(zeros[1] < zeros[0]);
  CHECK(zeros[0] < zeros[2]);
}
