// Included by each native test: doctest, and seeded random data whose seed is printed on failure.
#pragma once

#include <doctest/doctest.h>

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

inline std::vector<float> normal_floats(std::mt19937& random, size_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace espalier::test
