#include <doctest/doctest.h>

#include <cmath>

#include "prune/moments.h"
#include "prune_reference.h"

using namespace espalier;

namespace {

double kurtosis(const std::vector<double>& values) {
  double mean = 0;
  for (const double value : values) mean += value / static_cast<double>(values.size());
  double second = 0;
  double fourth = 0;
  for (const double value : values) {
    second += std::pow(value - mean, 2) / static_cast<double>(values.size());
    fourth += std::pow(value - mean, 4) / static_cast<double>(values.size());
  }
  return fourth / (second * second);
}

}  // namespace

TEST_CASE("moments are those of the definition, with and without zeros, for any number of threads") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  std::vector<float> weights = reference::normal_floats(random, 150'001);
  for (size_t i = 0; i < weights.size(); i += 3) weights[i] = 0;
  std::vector<double> all(weights.begin(), weights.end());
  std::vector<double> kept;
  for (const double value : all) {
    if (value != 0) kept.push_back(value);
  }
  ThreadPool one(1);
  ThreadPool five(5);
  const auto size = static_cast<int64_t>(weights.size());
  const WeightMoments found = weight_moments(one, weights.data(), size);
  CHECK(found.size == size);
  CHECK(found.zeros == size - static_cast<int64_t>(kept.size()));
  CHECK(found.kurtosis == doctest::Approx(kurtosis(all)).epsilon(1e-9));
  CHECK(found.kurtosis_kept == doctest::Approx(kurtosis(kept)).epsilon(1e-9));
  const WeightMoments again = weight_moments(five, weights.data(), size);
  CHECK(found.kurtosis == again.kurtosis);
  CHECK(found.kurtosis_kept == again.kurtosis_kept);
}

TEST_CASE("weights without spread have no kurtosis") {
  ThreadPool pool(2);
  const std::vector<float> zeros(100, 0.0f);
  CHECK(weight_moments(pool, zeros.data(), 100).kurtosis == 0);
  CHECK(weight_moments(pool, zeros.data(), 100).zeros == 100);
  CHECK(weight_moments(pool, nullptr, 0).size == 0);
}
