#include "moe/router.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "kernel_sets.h"
#include "test_main.h"

using namespace espalier;

namespace {

struct Routed {
  std::vector<int32_t> experts;
  std::vector<double> gates;
};

// Softmax in float64, the k largest of the float32 logits, the lower index first among equals.
Routed reference(const float* logits, int64_t rows, int top_k, bool renormalise) {
  std::vector<size_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  double total = 0;
  double highest = static_cast<double>(logits[order[0]]);
  for (int64_t r = 0; r < rows; ++r) total += std::exp(static_cast<double>(logits[r]) - highest);
  Routed routed;
  double kept = 0;
  for (int k = 0; k < top_k; ++k) {
    const size_t r = order[static_cast<size_t>(k)];
    routed.experts.push_back(static_cast<int32_t>(r));
    routed.gates.push_back(std::exp(static_cast<double>(logits[r]) - highest) / total);
    kept += routed.gates.back();
  }
  for (double& gate : routed.gates) gate = renormalise ? gate / kept : gate;
  return routed;
}

}  // namespace

TEST_CASE("the router takes the k most likely rows with the gates of float64, ties to the lower index") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const int64_t rows : {2, 8, 60, 128}) {
      for (const int top_k : {1, 2, 4, 8}) {
        if (top_k > rows) continue;
        for (const bool renormalise : {false, true}) {
          for (const bool ties : {false, true}) {
            CAPTURE(rows);
            CAPTURE(top_k);
            CAPTURE(ties);
            const int64_t tokens = 65;
            std::vector<float> logits = test::normal_floats(random, static_cast<size_t>(tokens * rows), 3);
            // On a grid, so that different logits have different probabilities in float32 too.
            const float grid = ties ? 1 : 1024;
            for (float& logit : logits) logit = std::round(logit * grid) / grid;
            std::vector<float> scratch = logits;
            std::vector<int32_t> chosen(static_cast<size_t>(tokens * top_k));
            std::vector<float> gates(chosen.size());
            route(*kernels, {top_k, renormalise}, scratch.data(), tokens, rows, chosen.data(), gates.data());
            for (int64_t t = 0; t < tokens; ++t) {
              const Routed wanted = reference(logits.data() + t * rows, rows, top_k, renormalise);
              for (int k = 0; k < top_k; ++k) {
                const auto i = static_cast<size_t>(t * top_k + k);
                REQUIRE(chosen[i] == wanted.experts[static_cast<size_t>(k)]);
                REQUIRE(static_cast<double>(gates[i]) ==
                        doctest::Approx(wanted.gates[static_cast<size_t>(k)]).epsilon(1e-5));
              }
            }
          }
        }
      }
    }
  }
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
