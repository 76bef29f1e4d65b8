// Division by a number that the host knows and the device does not: by multiplying.
#pragma once

#include <bit>
#include <cstdint>

namespace espalier::cuda {

class Divisor {
 public:
  Divisor() = default;  // by 1
  // `value` from 1 on.
  explicit Divisor(int value) {
    if (value == 1) return;
    // Rounded up, the multiplier is too large by less than 2^bits / 2^(31 + bits) of 1 / value: too little to matter
    // for less than 2^31.
    const auto divisor = static_cast<uint32_t>(value);
    const int bits = 32 - std::countl_zero(divisor - 1);
    multiplier_ = static_cast<uint32_t>(((uint64_t{1} << (31 + bits)) + divisor - 1) / divisor);
    whole_ = 0;
    shift_ = static_cast<uint32_t>(bits - 1);
  }
  // Of 0 … 2^31 − 1, rounded down.
  __host__ __device__ int divide(int n) const {
    const auto number = static_cast<uint32_t>(n);
    const auto high = static_cast<uint32_t>((uint64_t{number} * multiplier_) >> 32);
    return static_cast<int>((high + number * whole_) >> shift_);
  }

 private:
  uint32_t multiplier_ = 0;
  uint32_t whole_ = 1;
  uint32_t shift_ = 0;
};

}  // namespace espalier::cuda
