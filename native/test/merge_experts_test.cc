#include "prune/merge_experts.h"

#include <algorithm>
#include <numeric>

#include "core/dtype.h"
#include "prune/assignment.h"
#include "prune/router_rows.h"
#include "test_main.h"

using namespace espalier;

namespace {

ExpertValues random_expert(std::mt19937& random, int64_t width, int64_t hidden) {
  const auto size = static_cast<size_t>(width * hidden);
  return {.width = width,
          .hidden = hidden,
          .gate = test::normal_floats(random, size),
          .up = test::normal_floats(random, size),
          .down = test::normal_floats(random, size)};
}

// The same expert with channel i taken from channel order[i].
ExpertValues reordered(const ExpertValues& expert, const std::vector<int32_t>& order) {
  ExpertValues result = expert;
  for (int64_t i = 0; i < expert.width; ++i) {
    const int64_t from = order[static_cast<size_t>(i)];
    for (int64_t h = 0; h < expert.hidden; ++h) {
      result.gate[static_cast<size_t>(i * expert.hidden + h)] =
          expert.gate[static_cast<size_t>(from * expert.hidden + h)];
      result.up[static_cast<size_t>(i * expert.hidden + h)] = expert.up[static_cast<size_t>(from * expert.hidden + h)];
      result.down[static_cast<size_t>(h * expert.width + i)] =
          expert.down[static_cast<size_t>(h * expert.width + from)];
    }
  }
  return result;
}

}  // namespace

TEST_CASE("an assignment gains as much as the best of all permutations") {
  std::mt19937 random(test::fresh_seed());
  for (int64_t n = 1; n <= 7; ++n) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::vector<float> gain = test::normal_floats(random, static_cast<size_t>(n * n));
      // Ties, too.
      if (repeat % 2 == 1) {
        for (float& value : gain) value = std::round(value);
      }
      const auto sum = [&](const std::vector<int32_t>& p) {
        double total = 0;
        for (int64_t i = 0; i < n; ++i)
          total += static_cast<double>(gain[static_cast<size_t>(i * n + p[static_cast<size_t>(i)])]);
        return total;
      };
      std::vector<int32_t> p(static_cast<size_t>(n));
      std::iota(p.begin(), p.end(), 0);
      double best = -1e30;
      do best = std::max(best, sum(p));
      while (std::next_permutation(p.begin(), p.end()));
      const auto found = best_assignment(gain, n, nullptr);
      REQUIRE(found.is_ok());
      std::vector<int32_t> sorted = found.value();
      std::sort(sorted.begin(), sorted.end());
      for (int32_t i = 0; i < n; ++i) REQUIRE(sorted[static_cast<size_t>(i)] == i);
      CHECK(sum(found.value()) == doctest::Approx(best).epsilon(1e-9));
    }
  }
}

TEST_CASE("an assignment of more than are assigned together gains nearly as much as the best") {
  std::mt19937 random(test::fresh_seed());
  const int64_t n = kAssignedTogether + 150;
  const auto size = static_cast<size_t>(n);
  // Gains without structure; with columns that every row wants; and those of a permutation under noise.
  for (const int kind : {0, 1, 2}) {
    CAPTURE(kind);
    std::vector<float> gain = test::normal_floats(random, size * size);
    const std::vector<float> wanted = test::normal_floats(random, size, 3);
    for (size_t i = 0; i < gain.size(); ++i) {
      if (kind == 1) gain[i] += wanted[i % size];
      if (kind == 2 && i % size == (i / size * 7 + 3) % size) gain[i] += 20;
    }
    const auto sum = [&](const std::vector<int32_t>& p) {
      double total = 0;
      for (size_t i = 0; i < size; ++i) total += static_cast<double>(gain[i * size + static_cast<size_t>(p[i])]);
      return total;
    };
    const auto best = best_assignment(gain, n, nullptr);
    const auto good = good_assignment(gain, n, nullptr);
    REQUIRE(best.is_ok());
    REQUIRE(good.is_ok());
    std::vector<int32_t> sorted = good.value();
    std::sort(sorted.begin(), sorted.end());
    for (int32_t i = 0; i < n; ++i) REQUIRE(sorted[static_cast<size_t>(i)] == i);
    MESSAGE("of the best gain: " << sum(good.value()) / sum(best.value()));
    if (kind == 2) CHECK(good.value() == best.value());
    CHECK(sum(good.value()) >= 0.99 * sum(best.value()));
    CHECK(sum(good.value()) <= sum(best.value()) * (1 + 1e-9));
    CHECK(good_assignment(gain, n, nullptr).value() == good.value());
  }
  const std::atomic<bool> cancel{true};
  CHECK(good_assignment(std::vector<float>(size * size), n, &cancel).status().code() == Code::kAborted);
}

TEST_CASE("channels that were shuffled are found again, and an expert merged with its shuffled self stays itself") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const ExpertValues expert = random_expert(random, 37, 20);
  std::vector<int32_t> order(37);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const ExpertValues shuffled = reordered(expert, order);
  const auto matched = match_channels(pool, expert, shuffled, nullptr);
  REQUIRE(matched.is_ok());
  for (size_t i = 0; i < order.size(); ++i)
    CHECK(order[static_cast<size_t>(matched.value()[i])] == static_cast<int32_t>(i));

  const auto load = [&](int32_t e) -> Result<ExpertValues> { return e == 0 ? expert : shuffled; };
  const auto merged = merge_experts(pool, {{0, 0.25f}, {1, 0.75f}}, true, load, nullptr);
  REQUIRE(merged.is_ok());
  for (size_t i = 0; i < expert.gate.size(); ++i) {
    CHECK(merged.value().gate[i] == doctest::Approx(expert.gate[i]));
    CHECK(merged.value().up[i] == doctest::Approx(expert.up[i]));
    CHECK(merged.value().down[i] == doctest::Approx(expert.down[i]));
  }
}

TEST_CASE("a merge is the weighted mean of its members; experts of other widths are refused") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(1);
  const std::vector<ExpertValues> experts = {random_expert(random, 5, 7), random_expert(random, 5, 7),
                                             random_expert(random, 5, 7), random_expert(random, 6, 7)};
  const auto load = [&](int32_t e) -> Result<ExpertValues> { return experts[static_cast<size_t>(e)]; };
  const auto merged = merge_experts(pool, {{0, 0.5f}, {2, 0.125f}, {1, 0.375f}}, false, load, nullptr);
  REQUIRE(merged.is_ok());
  for (size_t i = 0; i < experts[0].down.size(); ++i) {
    const double wanted = 0.5 * static_cast<double>(experts[0].down[i]) +
                          0.125 * static_cast<double>(experts[2].down[i]) +
                          0.375 * static_cast<double>(experts[1].down[i]);
    CHECK(static_cast<double>(merged.value().down[i]) == doctest::Approx(wanted).epsilon(1e-5));
  }
  CHECK(merge_experts(pool, {{0, 0.5f}, {3, 0.5f}}, false, load, nullptr).status().code() == Code::kMismatch);
}

TEST_CASE("router rows keep their bytes alone and are averaged together") {
  // bf16: 1, -2 | NaN payload, 4 | 3, 8
  const std::vector<uint16_t> bits = {0x3f80, 0xc000, 0x7fa1, 0x4080, 0x4040, 0x4100};
  const auto* bytes = reinterpret_cast<const uint8_t*>(bits.data());
  const std::vector<uint8_t> result = average_rows(DType::kBF16, bytes, 2, {{1}, {0, 2}});
  REQUIRE(result.size() == 8);
  CHECK(std::equal(result.begin(), result.begin() + 4, bytes + 4));
  CHECK(load_float(DType::kBF16, result.data(), 2) == 2.0f);
  CHECK(load_float(DType::kBF16, result.data(), 3) == 3.0f);
}
