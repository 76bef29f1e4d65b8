#include "moe/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "kernel_sets.h"
#include "test_main.h"

using namespace espalier;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Scored {
  std::vector<double> scores;
  std::vector<double> keys;    // score + bias, −∞ in groups that are left out
  std::vector<double> groups;  // how good each is: the sum of its two best keys
};

// All in float64, by sorting.
Scored reference(const float* logits, int64_t rows, const RouterOptions& options) {
  const auto n = static_cast<size_t>(rows);
  Scored scored;
  const double highest = static_cast<double>(*std::max_element(logits, logits + rows));
  double total = 0;
  for (size_t r = 0; r < n; ++r) total += std::exp(static_cast<double>(logits[r]) - highest);
  for (size_t r = 0; r < n; ++r) {
    const double logit = static_cast<double>(logits[r]);
    scored.scores.push_back(options.scoring == Scoring::kSoftmax ? std::exp(logit - highest) / total
                                                                 : 1 / (1 + std::exp(-logit)));
    const double bias = options.correction_bias.empty() ? 0 : static_cast<double>(options.correction_bias[r]);
    scored.keys.push_back(scored.scores[r] + bias);
  }
  const auto groups = static_cast<size_t>(options.n_group);
  const size_t size = n / groups;
  for (size_t g = 0; g < groups; ++g) {
    std::vector<double> keys(scored.keys.begin() + static_cast<std::ptrdiff_t>(g * size),
                             scored.keys.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::sort(keys.rbegin(), keys.rend());
    scored.groups.push_back(keys[0] + (size > 1 ? keys[1] : 0));
  }
  std::vector<size_t> order(groups);
  std::iota(order.begin(), order.end(), size_t{0});
  const std::vector<double>& goodness = scored.groups;
  std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) { return goodness[x] > goodness[y]; });
  for (size_t g = static_cast<size_t>(options.topk_group); g < groups; ++g) {
    std::fill_n(scored.keys.begin() + static_cast<std::ptrdiff_t>(order[g] * size), size, -kInfinity);
  }
  return scored;
}

struct Routed {
  std::vector<int32_t> chosen;
  std::vector<float> gates;
};

Routed run(const CpuKernels& kernels, const RouterOptions& options, std::vector<float> logits, int64_t rows) {
  const auto tokens = static_cast<int64_t>(logits.size()) / rows;
  Routed routed{std::vector<int32_t>(static_cast<size_t>(tokens * options.top_k), -1), {}};
  routed.gates.resize(routed.chosen.size(), std::nanf(""));
  REQUIRE(check_router(options, rows).is_ok());
  route(kernels, options, logits.data(), tokens, rows, routed.chosen.data(), routed.gates.data());
  return routed;
}

// One token: the choice is that of the keys, in order, and the gates are those of the scores.
void check_token(const RouterOptions& options, const float* logits, int64_t rows, const int32_t* chosen,
                 const float* gates) {
  const Scored wanted = reference(logits, rows, options);
  std::vector<size_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) { return wanted.keys[x] > wanted.keys[y]; });
  double total = 0;
  for (int k = 0; k < options.top_k; ++k) total += wanted.scores[order[static_cast<size_t>(k)]];
  for (int k = 0; k < options.top_k; ++k) {
    REQUIRE(chosen[k] == static_cast<int32_t>(order[static_cast<size_t>(k)]));
    const double score = wanted.scores[order[static_cast<size_t>(k)]];
    const double gate =
        (options.renormalise ? score / total : score) * static_cast<double>(options.routed_scaling_factor);
    REQUIRE(static_cast<double>(gates[k]) == doctest::Approx(gate).epsilon(1e-5));
  }
}

// Whether float32, too, tells the groups apart.
bool are_apart(std::vector<double> groups) {
  std::sort(groups.begin(), groups.end());
  for (size_t g = 1; g < groups.size(); ++g) {
    if (groups[g] - groups[g - 1] < 1e-5 * std::max(std::abs(groups[g]), std::abs(groups[g - 1]))) return false;
  }
  return true;
}

int between(std::mt19937& random, int low, int high) { return std::uniform_int_distribution(low, high)(random); }

}  // namespace

TEST_CASE("the router chooses and weighs as float64 does: every scoring, with bias, groups and ties") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (int round = 0; round < 400; ++round) {
      RouterOptions options;
      options.n_group = between(random, 0, 1) == 0 ? 1 : between(random, 1, 8);
      const int64_t rows = static_cast<int64_t>(options.n_group) * between(random, 1, 256 / options.n_group);
      options.topk_group = between(random, 1, options.n_group);
      const auto allowed = static_cast<int>(rows / options.n_group * options.topk_group);
      options.top_k =
          between(random, 0, 1) == 0 ? between(random, 1, std::min(8, allowed)) : between(random, 1, allowed);
      options.renormalise = between(random, 0, 1) == 1;
      options.scoring = between(random, 0, 1) == 1 ? Scoring::kSigmoid : Scoring::kSoftmax;
      options.routed_scaling_factor = between(random, 0, 1) == 1 ? 2.5f : 1.0f;
      const bool ties = between(random, 0, 1) == 1;
      const int64_t tokens = 5;
      if (!ties && between(random, 0, 1) == 1) {
        // Larger than any score: the bias alone makes the choice, differently from the scores.
        options.correction_bias.resize(static_cast<size_t>(rows));
        for (size_t r = 0; r < options.correction_bias.size(); ++r) {
          options.correction_bias[r] = 1.5f * static_cast<float>(r) - 40;
        }
      }
      std::vector<float> logits;
      const auto draw_logits = [&] {
        logits.clear();
        std::shuffle(options.correction_bias.begin(), options.correction_bias.end(), random);
        for (int64_t t = 0; t < tokens; ++t) {
          if (ties) {
            constexpr float kFew[] = {-1, 0, 2};
            for (int64_t r = 0; r < rows; ++r) logits.push_back(kFew[between(random, 0, 2)]);
          } else {
            // Every logit differs from every other by far more than float32 rounds.
            std::vector<float> different(static_cast<size_t>(rows));
            for (size_t r = 0; r < different.size(); ++r) different[r] = 0.02f * static_cast<float>(r) - 2;
            std::shuffle(different.begin(), different.end(), random);
            logits.insert(logits.end(), different.begin(), different.end());
          }
        }
      };
      // Sums of two may still be as close as float32 rounds; equal ones are as equal in float64.
      const auto are_clear = [&] {
        for (int64_t t = 0; t < tokens && !ties; ++t) {
          if (!are_apart(reference(logits.data() + t * rows, rows, options).groups)) return false;
        }
        return true;
      };
      do {
        draw_logits();
      } while (!are_clear());
      CAPTURE(rows);
      CAPTURE(options.top_k);
      CAPTURE(options.n_group);
      CAPTURE(options.topk_group);
      CAPTURE(ties);
      const Routed routed = run(*kernels, options, logits, rows);
      for (int64_t t = 0; t < tokens; ++t) {
        check_token(options, logits.data() + t * rows, rows, routed.chosen.data() + t * options.top_k,
                    routed.gates.data() + t * options.top_k);
      }
    }
  }
}

TEST_CASE("a small bias decides between close scores and is not in the gates") {
  // Sigmoids 0.5, 0.6225 and 0.7311: the bias lifts the first over the second, not over the third.
  for (const CpuKernels* kernels : test::kernel_sets()) {
    RouterOptions options;
    options.top_k = 2;
    options.scoring = Scoring::kSigmoid;
    options.correction_bias = {0.2f, 0, 0};
    const Routed routed = run(*kernels, options, {0, 0.5f, 1}, 3);
    CHECK(routed.chosen == std::vector<int32_t>{2, 0});
    CHECK(routed.gates[0] == doctest::Approx(0.7310586));
    CHECK(routed.gates[1] == doctest::Approx(0.5));
  }
}

TEST_CASE("a group is as good as its two best experts, and experts of other groups are never chosen") {
  // The best expert of all is in a group whose second is poor.
  const std::vector<float> logits = {4, -9, -9, 1, 1, -9, 0, 0, 0};
  for (const CpuKernels* kernels : test::kernel_sets()) {
    RouterOptions options;
    options.top_k = 3;
    options.scoring = Scoring::kSigmoid;
    options.n_group = 3;
    CHECK(run(*kernels, options, logits, 9).chosen == std::vector<int32_t>{3, 4, 5});
    options.topk_group = 2;
    CHECK(run(*kernels, options, logits, 9).chosen == std::vector<int32_t>{3, 4, 6});
    // Not even where every score with bias of the best group is negative.
    options.correction_bias = {-8, -8, -8, -1, -1, -1, -2, -2, -2};
    options.topk_group = 1;
    CHECK(run(*kernels, options, logits, 9).chosen == std::vector<int32_t>{3, 4, 5});
  }
}

TEST_CASE("equal logits go to the lowest experts, −∞ scores nothing, NaN is chosen last; no expert twice") {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::nanf("");
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid}) {
      RouterOptions options;
      options.scoring = scoring;
      options.top_k = 4;
      CHECK(run(*kernels, options, std::vector<float>(40, 0.3f), 40).chosen == std::vector<int32_t>{0, 1, 2, 3});

      options.top_k = 3;
      const Routed some = run(*kernels, options, {-infinity, 1, -infinity, 2}, 4);
      CHECK(some.chosen == std::vector<int32_t>{3, 1, 0});
      CHECK(some.gates[2] == 0);

      options.top_k = 4;
      std::vector<int32_t> all = run(*kernels, options, {nan, nan, nan, nan}, 4).chosen;
      CHECK(all == std::vector<int32_t>{0, 1, 2, 3});
    }
    RouterOptions options;
    options.scoring = Scoring::kSigmoid;
    options.top_k = 4;
    const Routed bad = run(*kernels, options, {-3, nan, infinity, -200}, 4);
    CHECK(bad.chosen == std::vector<int32_t>{2, 0, 3, 1});
    CHECK(bad.gates[0] == 1);
    CHECK(bad.gates[2] < 1e-30f);
    CHECK(std::isnan(bad.gates[3]));
  }
}

TEST_CASE("options that do not fit the experts are refused") {
  const auto refused = [](RouterOptions options) { return check_router(options, 12).code() == Code::kUsage; };
  const auto with = [](auto change) {
    RouterOptions options;
    options.top_k = 2;
    change(options);
    return options;
  };
  CHECK_FALSE(refused(with([](RouterOptions&) {})));
  CHECK(refused(with([](RouterOptions& o) { o.top_k = 0; })));
  CHECK(refused(with([](RouterOptions& o) { o.top_k = 13; })));
  CHECK(refused(with([](RouterOptions& o) { o.n_group = 0; })));
  CHECK(refused(with([](RouterOptions& o) { o.n_group = 5; })));
  CHECK(refused(with([](RouterOptions& o) { o.topk_group = 2; })));
  CHECK(refused(with([](RouterOptions& o) { o.topk_group = 0; })));
  CHECK(refused(with([](RouterOptions& o) { o.n_group = 12; })));
  CHECK_FALSE(refused(with([](RouterOptions& o) { o.n_group = 6; })));
  CHECK(refused(with([](RouterOptions& o) { o.correction_bias = {1, 2}; })));
  CHECK(refused(with([](RouterOptions& o) { o.routed_scaling_factor = std::nanf(""); })));
}

TEST_CASE("dispatch puts every pair of token and expert in one slot, by expert and then by token") {
  std::mt19937 random(test::fresh_seed());
  for (int round = 0; round < 50; ++round) {
    const int64_t router_rows = std::uniform_int_distribution<int64_t>(1, 12)(random);
    const int64_t experts = std::uniform_int_distribution<int64_t>(1, router_rows)(random);
    const int top_k = std::uniform_int_distribution<int>(1, static_cast<int>(router_rows))(random);
    const int64_t tokens = std::uniform_int_distribution<int64_t>(1, 40)(random);
    // Several router rows may lead to one expert, as after a merge.
    std::vector<int32_t> expert_of_row(static_cast<size_t>(router_rows));
    for (size_t r = 0; r < expert_of_row.size(); ++r) {
      expert_of_row[r] = static_cast<int32_t>(static_cast<int64_t>(r) % experts);
    }
    std::vector<int32_t> chosen;
    std::vector<int32_t> rows(static_cast<size_t>(router_rows));
    std::iota(rows.begin(), rows.end(), 0);
    for (int64_t t = 0; t < tokens; ++t) {
      std::shuffle(rows.begin(), rows.end(), random);
      chosen.insert(chosen.end(), rows.begin(), rows.begin() + top_k);
    }
    std::vector<float> gates(chosen.size());
    std::iota(gates.begin(), gates.end(), 1.0f);  // each names its pair

    const Dispatch slots = dispatch(chosen.data(), gates.data(), tokens, top_k, expert_of_row, experts);
    REQUIRE(slots.slots() == tokens * top_k);
    REQUIRE(slots.first_slot.size() == static_cast<size_t>(experts) + 1);
    CHECK(slots.first_slot.front() == 0);
    CHECK(slots.first_slot.back() == slots.slots());
    for (int64_t e = 0; e < experts; ++e) {
      int64_t expected = 0;
      for (const int32_t row : chosen) expected += expert_of_row[static_cast<size_t>(row)] == e ? 1 : 0;
      REQUIRE(slots.count(e) == expected);
      for (int64_t s = slots.first_slot[static_cast<size_t>(e)]; s < slots.first_slot[static_cast<size_t>(e) + 1];
           ++s) {
        const auto slot = static_cast<size_t>(s);
        const auto pair = static_cast<size_t>(slots.gate[slot]) - 1;
        REQUIRE(expert_of_row[static_cast<size_t>(chosen[pair])] == e);
        REQUIRE(slots.token[slot] == static_cast<int64_t>(pair) / top_k);
        if (s > slots.first_slot[static_cast<size_t>(e)]) REQUIRE(slots.token[slot - 1] <= slots.token[slot]);
      }
    }
    std::set<int32_t> seen;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int k = 0; k < top_k; ++k) {
        const int32_t slot = slots.slots_of[static_cast<size_t>(t * top_k + k)];
        REQUIRE(slots.token[static_cast<size_t>(slot)] == t);
        REQUIRE(seen.insert(slot).second);
      }
    }
    CHECK(static_cast<int64_t>(seen.size()) == slots.slots());
  }
}

TEST_CASE("experts from the first small gate on are left out, and the others keep the sum") {
  const CpuKernels& kernels = cpu_kernels();
  RouterOptions options;
  options.top_k = 3;
  options.skip_below = {0.5f, 0.1f};
  // Ratios to the first: 0.6 and 0.2: all; 0.4 and 0.2: one; 0.6 and 0.05: two.
  const double shares[3][4] = {{1, 0.2, 0.6, 0.01}, {0.4, 0.2, 0.001, 1}, {0.05, 0.6, 0.001, 1}};
  const std::vector<std::vector<int32_t>> wanted = {{0, 2, 1}, {3, -1, -1}, {3, 1, -1}};
  for (const bool renormalise : {true, false}) {
    options.renormalise = renormalise;
    REQUIRE(check_router(options, 4).is_ok());
    std::vector<float> logits;
    for (const auto& row : shares) {
      for (const double share : row) logits.push_back(static_cast<float>(std::log(share)));
    }
    std::vector<int32_t> chosen(9);
    std::vector<float> gates(9);
    route(kernels, options, logits.data(), 3, 4, chosen.data(), gates.data());
    for (size_t t = 0; t < 3; ++t) {
      double total = 0;
      for (const double share : shares[t]) total += share;
      double all = 0;
      double left = 0;
      std::vector<double> sorted(shares[t], shares[t] + 4);
      std::sort(sorted.rbegin(), sorted.rend());
      for (size_t k = 0; k < 3; ++k) {
        all += sorted[k];
        if (wanted[t][k] >= 0) left += sorted[k];
        CHECK(chosen[t * 3 + k] == wanted[t][k]);
      }
      for (size_t k = 0; k < 3; ++k) {
        const double own = wanted[t][k] < 0 ? 0 : sorted[k] / left * (renormalise ? 1 : all / total);
        CHECK(static_cast<double>(gates[t * 3 + k]) == doctest::Approx(own).epsilon(1e-5));
      }
    }
    // Token 0 goes to three experts, token 1 to one, token 2 to two; experts 0 and 2 are one.
    const Dispatch slots = dispatch(chosen.data(), gates.data(), 3, 3, {0, 1, 0, 2}, 3);
    CHECK(slots.slots() == 6);
    CHECK(slots.first_slot == std::vector<int64_t>{0, 2, 4, 6});
    CHECK(slots.token == std::vector<int32_t>{0, 0, 0, 2, 1, 2});
    CHECK(slots.slots_of == std::vector<int32_t>{0, 1, 2, 4, -1, -1, 3, 5, -1});
  }
  options.skip_below = {0.5f};
  CHECK(check_router(options, 4).code() == Code::kUsage);
}
