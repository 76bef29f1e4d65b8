#include "prune/score.h"

#include <algorithm>
#include <cmath>

namespace espalier {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kColumnsPerTask = 256;

double inverse_of(double sum) { return sum > 0 ? 1 / sum : 0; }

}  // namespace

void score_magnitude(ThreadPool& pool, const float* weights, int64_t rows, int64_t cols, float* scores) {
  pool.parallel_for(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * cols; i < end * cols; ++i) scores[i] = std::fabs(weights[i]);
  });
}

void score_activation(ThreadPool& pool, const float* weights, int64_t rows, int64_t cols, const float* norms,
                      float* scores) {
  pool.parallel_for(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* source = weights + row * cols;
      float* target = scores + row * cols;
      for (int64_t j = 0; j < cols; ++j) target[j] = std::fabs(source[j]) * norms[j];
    }
  });
}

std::vector<double> relative_lengths(const float* norms, int64_t cols, double power) {
  std::vector<double> lengths(static_cast<size_t>(cols));
  for (size_t j = 0; j < lengths.size(); ++j) lengths[j] = std::pow(static_cast<double>(norms[j]), power);
  return lengths;
}

void score_relative(ThreadPool& pool, const float* weights, int64_t rows, int64_t cols, const float* norms,
                    double power, float* scores) {
  std::vector<double> by_column(static_cast<size_t>(cols), 0.0);
  pool.parallel_for((cols - 1) / kColumnsPerTask + 1, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kColumnsPerTask;
    const int64_t last = std::min(cols, end * kColumnsPerTask);
    for (int64_t row = 0; row < rows; ++row) {
      const float* source = weights + row * cols;
      for (int64_t j = first; j < last; ++j)
        by_column[static_cast<size_t>(j)] += std::fabs(static_cast<double>(source[j]));
    }
    for (int64_t j = first; j < last; ++j) {
      double& value = by_column[static_cast<size_t>(j)];
      value = inverse_of(value);
    }
  });
  const std::vector<double> lengths = relative_lengths(norms, cols, power);
  pool.parallel_for(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* source = weights + row * cols;
      float* target = scores + row * cols;
      double sum = 0;
      for (int64_t j = 0; j < cols; ++j) sum += std::fabs(static_cast<double>(source[j]));
      const double by_row = inverse_of(sum);
      for (int64_t j = 0; j < cols; ++j) {
        const auto c = static_cast<size_t>(j);
        const double relative = std::fabs(static_cast<double>(source[j])) * (by_column[c] + by_row);
        target[j] = static_cast<float>(relative * lengths[c]);
      }
    }
  });
}

}  // namespace espalier
