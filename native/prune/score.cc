#include "prune/score.h"

#include <cmath>

namespace espalier {
namespace {

constexpr int64_t kRowsPerTask = 16;

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

}  // namespace espalier
