#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "test_main.h"

using namespace espalier;

namespace {

int32_t draw(const std::vector<float>& logits, const SamplerOptions& options, uint64_t step = 0) {
  return sample(logits, options, step);
}

// Pearson's statistic of `draws` tokens against probabilities proportional to `weights`.
double chi_squared(const std::vector<float>& logits, const SamplerOptions& options, const std::vector<double>& weights,
                   int draws) {
  double total = 0;
  for (const double w : weights) total += w;
  std::vector<int> counts(weights.size());
  for (int i = 0; i < draws; ++i) ++counts[static_cast<size_t>(draw(logits, options, static_cast<uint64_t>(i)))];
  double statistic = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double expected = weights[i] / total * draws;
    if (weights[i] == 0) {
      CHECK(counts[i] == 0);
    } else {
      statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
  }
  return statistic;
}

// Probabilities 8 : 4 : 2 : 1 : 1 at temperature 1, out of order.
const std::vector<float> kLogits = {std::log(2.0f), std::log(8.0f), 0, std::log(4.0f), 0};
// Far in the tail for up to 4 degrees of freedom: less than once in ten million.
constexpr double kLimit = 40;

}  // namespace

TEST_CASE("draws follow the softmax of the logits, for several seeds and temperatures") {
  std::mt19937_64 random(test::fresh_seed());
  for (int round = 0; round < 4; ++round) {
    const uint64_t seed = random();
    CHECK(chi_squared(kLogits, {.temperature = 1, .seed = seed}, {2, 8, 1, 4, 1}, 20000) < kLimit);
    CHECK(chi_squared(kLogits, {.temperature = 0.5f, .seed = seed}, {4, 64, 1, 16, 1}, 20000) < kLimit);
    CHECK(chi_squared(kLogits, {.temperature = 3, .seed = seed}, {std::cbrt(2.0), 2, 1, std::cbrt(4.0), 1}, 20000) <
          kLimit);
  }
}

TEST_CASE("top-k, top-p and min-p cut in this order") {
  const uint64_t seed = test::fresh_seed();
  CHECK(chi_squared(kLogits, {.temperature = 1, .top_k = 3, .seed = seed}, {2, 8, 0, 4, 0}, 20000) < kLimit);
  // 8/16 do not reach 0.7, 12/16 do.
  CHECK(chi_squared(kLogits, {.temperature = 1, .top_p = 0.7f, .seed = seed}, {0, 8, 0, 4, 0}, 20000) < kLimit);
  // Of the three that top-k leaves, 8/14 do not reach 0.6.
  CHECK(chi_squared(kLogits, {.temperature = 1, .top_k = 3, .top_p = 0.6f, .seed = seed}, {0, 8, 0, 4, 0}, 20000) <
        kLimit);
  CHECK(chi_squared(kLogits, {.temperature = 1, .min_p = 0.2f, .seed = seed}, {2, 8, 0, 4, 0}, 20000) < kLimit);
  CHECK(chi_squared(kLogits, {.temperature = 1, .top_k = 1, .seed = seed}, {0, 1, 0, 0, 0}, 500) < kLimit);
  // Between equals, the lower id.
  CHECK(chi_squared(kLogits, {.temperature = 1, .top_k = 4, .seed = seed}, {2, 8, 1, 4, 0}, 20000) < kLimit);
}

TEST_CASE("top-p of a flat distribution keeps hundreds, each drawn as often as it weighs") {
  std::mt19937_64 random(test::fresh_seed());
  std::vector<double> weights(700);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<double>(100 + i);
  std::shuffle(weights.begin(), weights.end(), random);
  std::vector<float> logits;
  for (const double w : weights) logits.push_back(static_cast<float>(std::log(w)));
  // The heaviest until they reach 0.9 of all: those from this weight on.
  double total = 0;
  for (const double w : weights) total += w;
  double least = 800;
  for (double reached = 0; reached < 0.9 * total; reached += least) --least;
  std::vector<double> kept = weights;
  for (double& w : kept) w = w < least ? 0 : w;
  const auto count = static_cast<double>(std::count_if(kept.begin(), kept.end(), [](double w) { return w > 0; }));
  CHECK(count > 400);
  // Seven standard deviations above the mean.
  const double limit = count + 7 * std::sqrt(2 * count);
  CHECK(chi_squared(logits, {.temperature = 1, .top_p = 0.9f, .seed = random()}, kept, 100000) < limit);
}

TEST_CASE("greedy takes the first of the largest, whatever else is asked") {
  CHECK(draw({1, 5, 5, 2}, {}) == 1);
  CHECK(draw({1, 5, 5, 2}, {.temperature = 0, .top_k = 3, .top_p = 0.1f, .seed = 7}, 9) == 1);
}

TEST_CASE("a draw depends on seed and step, and on nothing that came before") {
  const SamplerOptions options{.temperature = 1, .seed = 42};
  std::vector<int32_t> first;
  for (uint64_t step = 0; step < 64; ++step) first.push_back(draw(kLogits, options, step));
  for (uint64_t step = 64; step-- > 0;) CHECK(draw(kLogits, options, step) == first[step]);
  std::vector<int32_t> other;
  for (uint64_t step = 0; step < 64; ++step) other.push_back(draw(kLogits, {.temperature = 1, .seed = 43}, step));
  CHECK(first != other);
  // Neighbouring seeds are not each other's shifted steps.
  CHECK_FALSE(std::equal(first.begin() + 1, first.end(), other.begin()));
}

TEST_CASE("logits that are not finite give some token and no fault") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float temperature : {0.0f, 1.0f}) {
    const SamplerOptions options{.temperature = temperature, .top_k = 2, .top_p = 0.5f, .min_p = 0.1f};
    CHECK(draw({nan, nan, nan}, options) < 3);
    CHECK(draw({nan, 1, 2}, options) < 3);
    CHECK(draw({1, infinity, 2}, options) == 1);
    CHECK(draw({-infinity, -infinity, 2}, options) == 2);
    CHECK(draw({-infinity, -infinity}, options) < 2);
  }
}
