#include "prune/naee.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "test_main.h"

using namespace espalier;

namespace {

// The routed output of one token when only `kept` experts are there, written out in float64.
std::vector<double> output_of(const RouterOptions& routing, const std::vector<double>& logits,
                              const std::vector<std::vector<double>>& outputs, const std::vector<size_t>& kept) {
  std::vector<double> scores;
  double total = 0;
  for (const size_t e : kept) total += std::exp(logits[e]);
  for (const size_t e : kept) {
    scores.push_back(routing.scoring == Scoring::kSoftmax ? std::exp(logits[e]) / total
                                                          : 1 / (1 + std::exp(-logits[e])));
  }
  std::vector<size_t> order(kept.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const auto bias = [&](size_t i) {
      return routing.correction_bias.empty() ? 0.0 : static_cast<double>(routing.correction_bias[kept[i]]);
    };
    return scores[a] + bias(a) > scores[b] + bias(b);
  });
  order.resize(std::min(order.size(), static_cast<size_t>(routing.top_k)));
  double sum = 0;
  for (const size_t i : order) sum += scores[i];
  std::vector<double> z(outputs[0].size(), 0.0);
  for (const size_t i : order) {
    const double gate = scores[i] / (routing.renormalise ? sum : 1);
    for (size_t h = 0; h < z.size(); ++h) z[h] += gate * outputs[kept[i]][h];
  }
  return z;
}

// Kept sets by a recursion, in lexicographic order.
void sets_from(size_t first, size_t n, size_t keep, std::vector<size_t>& open, std::vector<std::vector<size_t>>& sets) {
  if (open.size() == keep) {
    sets.push_back(open);
    return;
  }
  for (size_t e = first; e < n; ++e) {
    open.push_back(e);
    sets_from(e + 1, n, keep, open, sets);
    open.pop_back();
  }
}

}  // namespace

TEST_CASE("the number of sets is exact, and capped without overflow") {
  CHECK(count_sets(8, 2, kMostKeptSets) == 28);
  CHECK(count_sets(8, 6, kMostKeptSets) == 28);
  CHECK(count_sets(16, 8, kMostKeptSets) == 12'870);
  CHECK(count_sets(20, 5, kMostKeptSets) == 15'504);
  CHECK(count_sets(32, 16, kMostKeptSets) == kMostKeptSets + 1);
  CHECK(count_sets(65'536, 32'768, kMostKeptSets) == kMostKeptSets + 1);
  CHECK_FALSE(KeptSetLosses::create({}, 32, 16).is_ok());
  CHECK_FALSE(KeptSetLosses::create({}, 8, 8).is_ok());
  CHECK_FALSE(KeptSetLosses::create({}, 8, 0).is_ok());
}

TEST_CASE("the loss of every kept set is that of the plain formula, for any number of threads") {
  std::mt19937 random(test::fresh_seed());
  std::normal_distribution<float> normal;
  constexpr size_t kExperts = 6;
  constexpr size_t kTokens = 21;
  constexpr size_t kHidden = 10;
  constexpr size_t kBatches = 3;
  for (const int kind : {0, 1, 2, 3}) {
    RouterOptions routing;
    routing.top_k = 2;
    routing.renormalise = kind != 0;
    if (kind >= 2) routing.scoring = Scoring::kSigmoid;
    if (kind == 3) {
      for (size_t e = 0; e < kExperts; ++e) routing.correction_bias.push_back(0.3f * normal(random));
    }
    for (const size_t keep : {1, 3, 5}) {
      std::vector<std::vector<size_t>> sets;
      std::vector<size_t> open;
      sets_from(0, kExperts, keep, open, sets);
      std::vector<double> wanted(sets.size(), 0.0);
      ThreadPool one(1);
      ThreadPool three(3);
      Result<KeptSetLosses> found = KeptSetLosses::create(routing, kExperts, static_cast<int64_t>(keep));
      Result<KeptSetLosses> threaded = KeptSetLosses::create(routing, kExperts, static_cast<int64_t>(keep));
      REQUIRE(found.is_ok());
      std::vector<size_t> all(kExperts);
      std::iota(all.begin(), all.end(), size_t{0});
      for (size_t batch = 0; batch < kBatches; ++batch) {
        std::vector<float> logits(kTokens * kExperts);
        std::vector<float> outputs(kExperts * kTokens * kHidden);
        for (float& value : logits) value = normal(random);
        for (float& value : outputs) value = normal(random);
        std::vector<double> squares(sets.size(), 0.0);
        for (size_t t = 0; t < kTokens; ++t) {
          std::vector<double> own(logits.begin() + static_cast<std::ptrdiff_t>(t * kExperts),
                                  logits.begin() + static_cast<std::ptrdiff_t>((t + 1) * kExperts));
          std::vector<std::vector<double>> of;
          for (size_t e = 0; e < kExperts; ++e) {
            const auto begin = outputs.begin() + static_cast<std::ptrdiff_t>((e * kTokens + t) * kHidden);
            of.emplace_back(begin, begin + kHidden);
          }
          const std::vector<double> z = output_of(routing, own, of, all);
          for (size_t s = 0; s < sets.size(); ++s) {
            const std::vector<double> changed = output_of(routing, own, of, sets[s]);
            for (size_t h = 0; h < kHidden; ++h) squares[s] += (z[h] - changed[h]) * (z[h] - changed[h]);
          }
        }
        for (size_t s = 0; s < sets.size(); ++s) wanted[s] += std::sqrt(squares[s]);
        std::vector<double> grams(kTokens * kExperts * kExperts);
        output_grams(one, outputs.data(), kExperts, kTokens, kHidden, grams.data());
        found.value().add(one, logits.data(), grams.data(), kTokens);
        found.value().end_batch();
        grams.assign(grams.size(), NAN);
        output_grams(three, outputs.data(), kExperts, kTokens, kHidden, grams.data());
        threaded.value().add(three, logits.data(), grams.data(), kTokens);
        threaded.value().end_batch();
      }
      REQUIRE(found.value().losses().size() == sets.size());
      CHECK(found.value().losses() == threaded.value().losses());
      for (size_t s = 0; s < sets.size(); ++s) {
        CHECK(found.value().losses()[s] == doctest::Approx(wanted[s]).epsilon(1e-9));
      }
    }
  }
}
