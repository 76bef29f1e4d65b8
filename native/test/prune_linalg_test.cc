#include <doctest/doctest.h>

#include <limits>

#include "core/cpu_features.h"
#include "prune/linalg.h"
#include "prune/panels.h"
#include "prune_reference.h"

using namespace espalier;
using reference::Matrix;

namespace {

// Sizes around the panel width, and several panels with a ragged end.
const int64_t kSizes[] = {1, 2, 7, 95, 96, 97, 192, 250, 389};

Matrix random_positive_definite(std::mt19937_64& random, int64_t n) {
  std::normal_distribution<double> normal;
  Matrix x(n + 10, n);
  for (double& value : x.data) value = normal(random);
  Matrix a = multiply(transpose(x), x);
  for (int64_t i = 0; i < n; ++i) a.at(i, i) += 0.1 * static_cast<double>(n);
  return a;
}

// A copy whose triangle that must not be read is NaN.
std::vector<double> one_triangle(const Matrix& a, bool lower) {
  std::vector<double> out = a.data;
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) {
      if (lower ? j > i : j < i) out[static_cast<size_t>(i * a.cols + j)] = std::numeric_limits<double>::quiet_NaN();
    }
  }
  return out;
}

Matrix keep_triangle(const std::vector<double>& a, int64_t n, bool lower) {
  Matrix out(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      if (lower ? j <= i : j >= i) out.at(i, j) = a[static_cast<size_t>(i * n + j)];
    }
  }
  return out;
}

double largest_difference(const Matrix& a, const Matrix& b) {
  double largest = 0;
  for (size_t i = 0; i < a.data.size(); ++i) {
    const double difference = std::fabs(a.data[i] - b.data[i]);
    // A NaN must not pass for a small difference.
    largest = difference <= largest ? largest : difference;
    if (std::isnan(difference)) return difference;
  }
  return largest;
}

double largest(const Matrix& a) {
  double value = 0;
  for (const double x : a.data) value = std::max(value, std::fabs(x));
  return value;
}

template <class T>
void check_kernels(const PanelKernels<T>& kernels, std::mt19937_64& random, double tolerance) {
  std::normal_distribution<double> normal;
  for (const int64_t depth : {1, 3, 96, 250}) {
    std::vector<T> a(static_cast<size_t>(depth * kPanel));
    std::vector<T> b(a.size());
    const int64_t stride = kPanel + 5;
    std::vector<T> c(static_cast<size_t>(kPanel * stride));
    for (std::vector<T>* values : {&a, &b, &c}) {
      for (T& value : *values) value = static_cast<T>(normal(random));
    }
    const std::vector<T> before = c;
    kernels.update(depth, a.data(), b.data(), T{-1}, c.data(), stride);
    double worst = 0;
    for (int64_t i = 0; i < kPanel; ++i) {
      for (int64_t j = 0; j < stride; ++j) {
        double expected = before[static_cast<size_t>(i * stride + j)];
        for (int64_t k = 0; k < depth && j < kPanel; ++k) {
          expected -= static_cast<double>(a[static_cast<size_t>(k * kPanel + i)]) *
                      static_cast<double>(b[static_cast<size_t>(k * kPanel + j)]);
        }
        worst = std::max(worst, std::fabs(expected - static_cast<double>(c[static_cast<size_t>(i * stride + j)])));
      }
    }
    CHECK(worst < tolerance);

    // `a` is the tile, the first row of `b` the row, `c` the factors.
    const std::vector<T> tile = a;
    kernels.eliminate(a.data(), depth - 1, b.data(), c.data());
    worst = 0;
    for (int64_t i = 0; i < depth; ++i) {
      for (int64_t j = 0; j < kPanel; ++j) {
        double expected = tile[static_cast<size_t>(i * kPanel + j)];
        if (i < depth - 1) {
          expected -= static_cast<double>(c[static_cast<size_t>(i)]) * static_cast<double>(b[static_cast<size_t>(j)]);
        }
        worst = std::max(worst, std::fabs(expected - static_cast<double>(a[static_cast<size_t>(i * kPanel + j)])));
      }
    }
    CHECK(worst < tolerance);
  }
}

}  // namespace

TEST_CASE("panel kernels of every instruction set agree with plain float64 loops") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  std::vector<const PanelKernelSet*> sets = {&kPanelKernelsScalar};
#if defined(__x86_64__)
  if (cpu_features().best >= Isa::kAvx2) sets.push_back(&kPanelKernelsAvx2);
  if (cpu_features().best >= Isa::kAvx512) sets.push_back(&kPanelKernelsAvx512);
#endif
  for (const PanelKernelSet* set : sets) {
    check_kernels(set->f32, random, 2e-4);
    check_kernels(set->f64, random, 1e-12);
  }
}

TEST_CASE("the tiles of a triangle are enumerated row by row") {
  int64_t index = 0;
  for (int64_t row = 0; row < 200; ++row) {
    for (int64_t column = 0; column <= row; ++column, ++index) {
      const TriangleTile tile = triangle_tile(index);
      REQUIRE(tile.row == row);
      REQUIRE(tile.column == column);
      REQUIRE(triangle_index(row, column) == index);
    }
  }
}

TEST_CASE("the Cholesky factor times its transpose is the matrix, whatever lies above the diagonal") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  for (const int64_t n : kSizes) {
    CAPTURE(n);
    const Matrix a = random_positive_definite(random, n);
    std::vector<double> work = one_triangle(a, true);
    const Result<int64_t> result = cholesky_lower(pool, work.data(), n);
    REQUIRE(result.is_ok());
    REQUIRE(result.value() == n);
    const Matrix l = keep_triangle(work, n, true);
    CHECK(largest_difference(multiply(l, transpose(l)), a) < 1e-13 * static_cast<double>(n + 10) * largest(a));
    for (int64_t i = 0; i < n; ++i) CHECK(l.at(i, i) > 0);
  }
}

TEST_CASE("the first pivot that is not positive is reported") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t n = 250;
  for (const int64_t bad : {0, 1, 95, 96, 130, 249}) {
    CAPTURE(bad);
    for (const double value : {-1.0, 0.0, std::numeric_limits<double>::quiet_NaN()}) {
      Matrix a = random_positive_definite(random, n);
      a.at(bad, bad) = value;
      const Result<int64_t> result = cholesky_lower(pool, a.data.data(), n);
      REQUIRE(result.is_ok());
      CHECK(result.value() == bad);
    }
  }
}

TEST_CASE("the inverse of a lower triangle times that triangle is the identity") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  for (const int64_t n : kSizes) {
    CAPTURE(n);
    const Matrix l = transpose(cholesky_upper(random_positive_definite(random, n)));
    std::vector<double> work = one_triangle(l, true);
    REQUIRE(invert_lower(pool, work.data(), n).is_ok());
    Matrix identity(n, n);
    for (int64_t i = 0; i < n; ++i) identity.at(i, i) = 1;
    CHECK(largest_difference(multiply(keep_triangle(work, n, true), l), identity) < 1e-11);
  }
}

TEST_CASE("the upper factor of the inverse equals the one by Gauss-Jordan and plain Cholesky") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  for (const int64_t n : kSizes) {
    CAPTURE(n);
    const Matrix a = random_positive_definite(random, n);
    std::vector<double> work = one_triangle(a, false);
    const Result<int64_t> result = inverse_upper_factor(pool, work.data(), n);
    REQUIRE(result.is_ok());
    REQUIRE(result.value() == n);
    const Matrix expected = cholesky_upper(inverse(a));
    CHECK(largest_difference(keep_triangle(work, n, false), expected) < 1e-11 * largest(expected));
  }
}

TEST_CASE("factorisations give the same bytes for any number of threads") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  const int64_t n = 389;
  const Matrix a = random_positive_definite(random, n);
  std::vector<Matrix> results;
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    std::vector<double> work = a.data;
    REQUIRE(inverse_upper_factor(pool, work.data(), n).value() == n);
    results.push_back(keep_triangle(work, n, false));
    CHECK(results.back().data == results.front().data);
  }
}
