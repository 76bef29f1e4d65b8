#include "core/dtype.h"

#include <cmath>

#include "test_main.h"

using namespace espalier;

TEST_CASE("every f16 converts to the float it stands for and back") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = f16_to_float(half);
    const int exponent = static_cast<int>((bits >> 10) & 0x1f);
    const int fraction = static_cast<int>(bits & 0x3ff);
    if (exponent == 31 && fraction != 0) {
      CHECK(std::isnan(value));
      CHECK(std::isnan(f16_to_float(float_to_f16(value))));
      continue;
    }
    const double magnitude = exponent == 31  ? INFINITY
                             : exponent == 0 ? std::ldexp(fraction, -24)
                                             : std::ldexp(1024 + fraction, exponent - 25);
    REQUIRE(static_cast<double>(value) == ((bits & 0x8000) != 0 ? -magnitude : magnitude));
    REQUIRE(float_to_f16(value) == half);
  }
}

TEST_CASE("float to f16 picks the nearest f16, ties to even") {
  std::mt19937 random(test::fresh_seed());
  std::uniform_int_distribution<uint32_t> any(0, 0x7bfe);
  for (int i = 0; i < 100000; ++i) {
    const auto low = static_cast<uint16_t>(any(random));
    const auto high = static_cast<uint16_t>(low + 1);
    const double a = static_cast<double>(f16_to_float(low));
    const double b = static_cast<double>(f16_to_float(high));
    const auto middle = static_cast<float>((a + b) / 2);  // exact: one more bit than f16 has
    REQUIRE(float_to_f16(middle) == ((low & 1) == 0 ? low : high));
    REQUIRE(float_to_f16(std::nextafter(middle, 0.0f)) == low);
    REQUIRE(float_to_f16(std::nextafter(middle, 1e9f)) == high);
    REQUIRE(float_to_f16(-middle) == (float_to_f16(middle) | 0x8000));
  }
  CHECK(float_to_f16(65519.0f) == 0x7bff);
  CHECK(float_to_f16(65520.0f) == 0x7c00);
  CHECK(float_to_f16(INFINITY) == 0x7c00);
}

TEST_CASE("float to bf16 rounds to nearest, ties to even, and keeps NaN") {
  std::mt19937 random(test::fresh_seed());
  std::uniform_int_distribution<uint32_t> any(0, 0x7f7e);
  for (int i = 0; i < 100000; ++i) {
    const auto low = static_cast<uint16_t>(any(random));
    const float middle = std::bit_cast<float>((static_cast<uint32_t>(low) << 16) | 0x8000u);
    const auto high = static_cast<uint16_t>(low + 1);
    REQUIRE(float_to_bf16(bf16_to_float(low)) == low);
    REQUIRE(float_to_bf16(middle) == ((low & 1) == 0 ? low : high));
    REQUIRE(float_to_bf16(std::bit_cast<float>(std::bit_cast<uint32_t>(middle) - 1)) == low);
    REQUIRE(float_to_bf16(std::bit_cast<float>(std::bit_cast<uint32_t>(middle) + 1)) == high);
  }
  CHECK(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7f800001u)))));
}
