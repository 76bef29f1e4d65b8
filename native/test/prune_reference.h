// Plain float64 versions of the pruning arithmetic, one loop a formula, and random inputs with a seed that is printed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace reference {

// A fresh seed each run; ESPALIER_TEST_SEED repeats one.
inline uint64_t fresh_seed() {
  const char* wish = std::getenv("ESPALIER_TEST_SEED");
  return wish != nullptr ? std::strtoull(wish, nullptr, 10) : std::random_device{}();
}

struct Matrix {
  int64_t rows;
  int64_t cols;
  std::vector<double> data;

  Matrix(int64_t r, int64_t c) : rows(r), cols(c), data(static_cast<size_t>(r * c), 0.0) {}
  double& at(int64_t i, int64_t j) { return data[static_cast<size_t>(i * cols + j)]; }
  double at(int64_t i, int64_t j) const { return data[static_cast<size_t>(i * cols + j)]; }
};

inline Matrix multiply(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.cols);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.cols; ++k) {
      for (int64_t j = 0; j < b.cols; ++j) c.at(i, j) += a.at(i, k) * b.at(k, j);
    }
  }
  return c;
}

inline Matrix transpose(const Matrix& a) {
  Matrix t(a.cols, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) t.at(j, i) = a.at(i, j);
  }
  return t;
}

// Gauss-Jordan elimination with partial pivoting.
inline Matrix inverse(Matrix a) {
  const int64_t n = a.rows;
  Matrix result(n, n);
  for (int64_t i = 0; i < n; ++i) result.at(i, i) = 1;
  for (int64_t k = 0; k < n; ++k) {
    int64_t pivot = k;
    for (int64_t i = k + 1; i < n; ++i) pivot = std::fabs(a.at(i, k)) > std::fabs(a.at(pivot, k)) ? i : pivot;
    for (int64_t j = 0; j < n; ++j) {
      std::swap(a.at(k, j), a.at(pivot, j));
      std::swap(result.at(k, j), result.at(pivot, j));
    }
    const double scale = 1 / a.at(k, k);
    for (int64_t j = 0; j < n; ++j) {
      a.at(k, j) *= scale;
      result.at(k, j) *= scale;
    }
    for (int64_t i = 0; i < n; ++i) {
      const double factor = a.at(i, k);
      if (i == k || factor == 0) continue;
      for (int64_t j = 0; j < n; ++j) {
        a.at(i, j) -= factor * a.at(k, j);
        result.at(i, j) -= factor * result.at(k, j);
      }
    }
  }
  return result;
}

// U of A = Uᵀ·U, element by element.
inline Matrix cholesky_upper(const Matrix& a) {
  const int64_t n = a.rows;
  Matrix u(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      double sum = a.at(i, j);
      for (int64_t k = 0; k < i; ++k) sum -= u.at(k, i) * u.at(k, j);
      u.at(i, j) = i == j ? std::sqrt(sum) : sum / u.at(i, i);
    }
  }
  return u;
}

inline std::vector<float> normal_floats(std::mt19937_64& random, int64_t count, float scale = 1) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = scale * normal(random);
  return values;
}

// Inputs [tokens, width] whose columns differ in length, each correlated with its neighbours.
inline std::vector<float> correlated_inputs(std::mt19937_64& random, int64_t tokens, int64_t width) {
  std::vector<float> x = normal_floats(random, tokens * width);
  std::uniform_real_distribution<float> uniform(0.3f, 3.0f);
  std::vector<float> length(static_cast<size_t>(width));
  for (float& value : length) value = uniform(random);
  for (int64_t t = 0; t < tokens; ++t) {
    float previous = 0;
    for (int64_t j = 0; j < width; ++j) {
      float& value = x[static_cast<size_t>(t * width + j)];
      previous = value + 0.8f * previous;
      value = previous * length[static_cast<size_t>(j)];
    }
  }
  return x;
}

// Indices of the `zeros` smallest scores; of equal ones the lower index goes first.
inline std::vector<size_t> smallest(const std::vector<double>& scores, int64_t zeros) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  order.resize(static_cast<size_t>(zeros));
  return order;
}

struct SparseGpt {
  Matrix weights;
  std::vector<uint8_t> mask;  // 1 = kept
  double margin;              // smallest relative gap between a score that went and the next that stayed
};

// Column by column with the explicit inverse, as the paper's algorithm reads, without delayed updates. group = 0:
// unstructured, one threshold for each `block` columns.
inline SparseGpt sparsegpt(Matrix w, Matrix h, double damping, double sparsity, int64_t keep, int64_t group,
                           int64_t block) {
  const int64_t n = h.rows;
  double trace = 0;
  int64_t live = 0;
  for (int64_t j = 0; j < n; ++j) {
    trace += h.at(j, j);
    live += h.at(j, j) != 0 ? 1 : 0;
  }
  const double mean = trace / static_cast<double>(live);
  for (double& value : h.data) value /= mean;
  for (int64_t j = 0; j < n; ++j) {
    if (h.at(j, j) == 0) {
      h.at(j, j) = 1;
      for (int64_t r = 0; r < w.rows; ++r) w.at(r, j) = 0;
    }
    h.at(j, j) += damping;
  }
  const Matrix u = cholesky_upper(inverse(h));
  SparseGpt out{w, std::vector<uint8_t>(w.data.size(), 1), std::numeric_limits<double>::infinity()};
  Matrix& x = out.weights;
  const auto score = [&](int64_t r, int64_t j) { return x.at(r, j) * x.at(r, j) / (u.at(j, j) * u.at(j, j)); };
  const auto gap = [&](double gone, double stayed) {
    if (stayed > 0) out.margin = std::min(out.margin, (stayed - gone) / stayed);
  };
  for (int64_t j = 0; j < n; ++j) {
    if (group == 0 && j % block == 0 && sparsity > 0) {
      const int64_t end = std::min(n, j + block);
      std::vector<double> scores;
      for (int64_t r = 0; r < x.rows; ++r) {
        for (int64_t c = j; c < end; ++c) scores.push_back(score(r, c));
      }
      std::vector<double> sorted = scores;
      std::sort(sorted.begin(), sorted.end());
      const auto zeros = static_cast<size_t>(std::floor(sparsity * static_cast<double>(sorted.size())));
      const double threshold = zeros > 0 ? sorted[zeros - 1] : -1;
      gap(threshold, sorted[zeros]);
      for (int64_t r = 0; r < x.rows; ++r) {
        for (int64_t c = j; c < end; ++c) out.mask[static_cast<size_t>(r * n + c)] = score(r, c) > threshold;
      }
    }
    if (group != 0 && j % group == 0) {
      for (int64_t r = 0; r < x.rows; ++r) {
        std::vector<double> scores;
        for (int64_t c = j; c < j + group; ++c) scores.push_back(score(r, c));
        for (const size_t c : smallest(scores, group - keep)) out.mask[static_cast<size_t>(r * n + j) + c] = 0;
        std::sort(scores.begin(), scores.end());
        gap(scores[static_cast<size_t>(group - keep - 1)], scores[static_cast<size_t>(group - keep)]);
      }
    }
    for (int64_t r = 0; r < x.rows; ++r) {
      if (out.mask[static_cast<size_t>(r * n + j)] != 0) continue;
      const double error = x.at(r, j) / u.at(j, j);
      for (int64_t c = j; c < n; ++c) x.at(r, c) -= error * u.at(j, c);
      x.at(r, j) = 0;
    }
  }
  return out;
}

}  // namespace reference
