// Included by each native test: doctest, and seeded random data whose seed is printed on failure.
#pragma once

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

namespace espalier::test {

// A fresh seed a run; ESPALIER_TEST_SEED repeats one.
inline unsigned fresh_seed() {
  static const unsigned seed = [] {
    const char* wish = std::getenv("ESPALIER_TEST_SEED");
    const unsigned value =
        wish != nullptr ? static_cast<unsigned>(std::strtoul(wish, nullptr, 10)) : std::random_device{}();
    MESSAGE("ESPALIER_TEST_SEED=" << value);
    return value;
  }();
  return seed;
}

// As normal as tests need: how many of 64 random bits are set, with an even spread from one count to the next. Never
// zero. std::normal_distribution took half the time of tests with much data.
inline std::vector<float> normal_floats(std::mt19937& random, size_t count, float scale = 1) {
  const double unit = static_cast<double>(scale) / std::sqrt(16 + 1.0 / 12);
  std::vector<float> values(count);
  for (float& value : values) {
    const int set = std::popcount(static_cast<uint32_t>(random())) + std::popcount(static_cast<uint32_t>(random()));
    const double spread = (static_cast<double>(random()) + 0.5) * 0x1p-32 - 0.5;
    value = static_cast<float>(unit * (set - 32 + spread));
  }
  return values;
}

}  // namespace espalier::test
