#include "engine/logit_rules.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/log_probabilities.h"
#include "engine/sampler.h"
#include "kernel_sets.h"
#include "test_main.h"

using namespace espalier;

namespace {

const float kNever = -std::numeric_limits<float>::infinity();

std::vector<float> applied(const LogitRules& rules, std::vector<float> logits) {
  rules.apply(logits);
  return logits;
}

}  // namespace

TEST_CASE("the repetition penalty divides positive and multiplies negative logits, once for each token") {
  CHECK(applied({.repetition_penalty = 2, .history = {0, 0, 2}}, {4, 3, -1}) == std::vector<float>{2, 3, -2});
  CHECK(applied({.repetition_penalty = 2, .history = {7, -3}}, {4, 3}) == std::vector<float>{4, 3});
}

TEST_CASE("presence and frequency penalties count the answer, not the prompt") {
  const LogitRules rules{
      .presence_penalty = 0.5f, .frequency_penalty = 0.25f, .history = {2, 2, 0, 1, 0, 9}, .answer_begin = 2};
  CHECK(applied(rules, {4, 3, -1}) == std::vector<float>{4 - 0.5f - 2 * 0.25f, 3 - 0.5f - 0.25f, -1});
  const LogitRules reward{.presence_penalty = -2, .history = {1}};
  CHECK(applied(reward, {1, 1}) == std::vector<float>{1, 3});
}

TEST_CASE("a bias is added, and ids outside the logits are passed over") {
  CHECK(applied({.bias = {{1, -100}, {0, 2.5f}, {5, 1}, {-1, 1}}}, {1, 2, 3}) == std::vector<float>{3.5f, -98, 3});
}

TEST_CASE("a mask leaves what its bits allow, and nothing past its end") {
  std::vector<float> logits(70, 1);
  const LogitRules rules{.mask = {static_cast<int32_t>(0x80000001u), 2}};
  rules.apply(logits);
  for (size_t i = 0; i < logits.size(); ++i) CHECK(logits[i] == (i == 0 || i == 31 || i == 33 ? 1 : kNever));
  // The mask comes last: a bias does not bring a token back.
  CHECK(applied({.bias = {{0, 100}}, .mask = {2}}, {1, 2}) == std::vector<float>{kNever, 2});
  for (const float temperature : {0.0f, 1.0f}) {
    for (uint64_t step = 0; step < 50; ++step) {
      CHECK(sample(applied({.mask = {4}}, {9, 8, 7}), {.temperature = temperature}, step) == 2);
    }
  }
}

TEST_CASE("log-probabilities and the most likely tokens are those of the softmax in float64") {
  std::mt19937_64 random(test::fresh_seed());
  std::normal_distribution<float> normal(0, 4);
  for (const size_t count : {1u, 5u, 1000u}) {
    std::vector<float> logits(count);
    for (float& logit : logits) logit = std::round(normal(random) * 4) / 4;  // with ties
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    for (const CpuKernels* kernels : test::kernel_sets()) {
      const LogProbabilities probabilities(*kernels, logits);
      for (const size_t top : {size_t{0}, size_t{1}, std::min<size_t>(count, 20), count}) {
        std::vector<int32_t> ids(top);
        std::vector<double> values(top);
        probabilities.top(ids, values);
        CHECK(std::equal(ids.begin(), ids.end(), order.begin()));
        for (size_t i = 0; i < top; ++i) {
          const double wanted = static_cast<double>(logits[static_cast<size_t>(ids[i])]) - std::log(sum);
          CHECK(values[i] == doctest::Approx(wanted).epsilon(1e-6));
          CHECK(values[i] == probabilities.of(ids[i]));
        }
      }
    }
  }
}
