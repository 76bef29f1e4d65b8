// Random weights for a format, and packing them.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "core/dtype.h"
#include "sparse/packed_matrix.h"
#include "test_main.h"

namespace espalier::test {

inline PackedMatrix::RowReader reader(const std::vector<float>& values, int64_t cols) {
  return [&values, cols](int64_t row, float* out) { std::copy_n(values.begin() + row * cols, cols, out); };
}

// bf16-representable weights that the format can hold: about `density` of them non-zero, or n of each m.
inline std::vector<float> sparse_weights(std::mt19937& random, int64_t rows, int64_t cols, const Format& format,
                                         double density = 0.5) {
  std::vector<float> values = normal_floats(random, static_cast<size_t>(rows * cols));
  std::bernoulli_distribution keep(density);
  for (float& value : values) value = bf16_to_float(float_to_bf16(value));
  if (format.storage != Storage::kNm) {
    for (float& value : values) value = keep(random) ? value : 0.0f;
    return values;
  }
  std::vector<size_t> order(static_cast<size_t>(format.m));
  for (size_t first = 0; first < values.size(); first += order.size()) {
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    for (size_t i = static_cast<size_t>(format.n); i < order.size(); ++i) values[first + order[i]] = 0;
  }
  return values;
}

inline PackedMatrix pack(const std::vector<float>& values, int64_t rows, int64_t cols, const Format& format) {
  ThreadPool pool(2);
  Result<PackedMatrix> packed = PackedMatrix::pack(pool, format, rows, cols, reader(values, cols));
  REQUIRE(packed.is_ok());
  return std::move(packed.value());
}

}  // namespace espalier::test
