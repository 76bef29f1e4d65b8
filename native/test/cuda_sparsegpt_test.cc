// SparseGPT's steps on a GPU, against float64 on the host and against the CPU's walk.
#include <algorithm>
#include <cstring>

#include "gpu.h"
#include "kernels/cuda/gemm_double.h"
#include "kernels/cuda/rank_search.h"
#include "kernels/cuda/sparsegpt.h"
#include "kernels/cuda/triangular_inverse.h"
#include "prune/cuda/device_walk.h"
#include "prune_reference.h"

using namespace espalier;
using namespace espalier::cuda;
using reference::Matrix;
using test::draw;
using test::floats;
using test::OnGpu;
using test::require;

namespace {

std::vector<double> doubles(size_t count) {
  const std::vector<float> high = floats(count);
  const std::vector<float> low = floats(count, 1e-8f);
  std::vector<double> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<double>(high[i]) + static_cast<double>(low[i]);
  return out;
}

template <class T>
void check_product(int rows, int cols, bool accumulate, int lower_from) {
  const int a_rows = (rows + kDoubleRows - 1) / kDoubleRows * kDoubleRows;
  const int b_cols = (cols + kDoubleCols - 1) / kDoubleCols * kDoubleCols;
  const int stride = cols + 3;
  const std::vector<double> a = doubles(static_cast<size_t>(a_rows * kEliminated));
  const std::vector<double> b = doubles(static_cast<size_t>(kEliminated * b_cols));
  std::vector<T> c;
  for (const double value : doubles(static_cast<size_t>(rows * stride))) c.push_back(static_cast<T>(value));
  const OnGpu<double> a_gpu(a);
  const OnGpu<double> b_gpu(b);
  const OnGpu<T> c_gpu(c);
  require(gemm_double(DoubleGemmTask<T>{.a = a_gpu.get(),
                                        .a_stride = kEliminated,
                                        .b = b_gpu.get(),
                                        .b_stride = b_cols,
                                        .c = c_gpu.get(),
                                        .c_stride = stride,
                                        .rows = rows,
                                        .cols = cols,
                                        .accumulate = accumulate,
                                        .lower_from = lower_from},
                      nullptr));
  const std::vector<T> found = c_gpu.host();
  double worst = 0;
  int touched = 0;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < stride; ++j) {
      const auto at = static_cast<size_t>(i * stride + j);
      if (j >= cols || (lower_from >= 0 &&
                        j / kDoubleCols * kDoubleCols >= lower_from + i / kDoubleRows * kDoubleRows + kDoubleRows)) {
        touched += found[at] != c[at] ? 1 : 0;
        continue;
      }
      double wanted = accumulate ? static_cast<double>(c[at]) : 0;
      for (int k = 0; k < kEliminated; ++k) {
        wanted += a[static_cast<size_t>(i * kEliminated + k)] * b[static_cast<size_t>(k * b_cols + j)];
      }
      const double bound = std::is_same_v<T, float> ? 6e-8 * std::abs(wanted) + 1e-12 : 1e-12;
      worst = std::max(worst, std::abs(static_cast<double>(found[at]) - wanted) / bound);
    }
  }
  CHECK(worst < 1);
  CHECK(touched == 0);
}

SiteStatistics collect(ThreadPool& pool, const std::vector<float>& x, int64_t tokens, int64_t width) {
  Result<SiteStatistics> site = SiteStatistics::create(width, true);
  REQUIRE(site.is_ok());
  site.value().add(pool, x.data(), tokens, width, nullptr);
  site.value().finish(pool);
  return std::move(site.value());
}

// The upper triangle in rows of `stride`, NaN elsewhere.
std::vector<float> gram_of(const SiteStatistics& site, int64_t stride) {
  std::vector<float> gram(static_cast<size_t>(site.width() * stride), NAN);
  for (int64_t i = 0; i < site.width(); ++i) {
    for (int64_t j = i; j < site.width(); ++j) gram[static_cast<size_t>(i * stride + j)] = site.gram(i, j);
  }
  return gram;
}

// Σ over tokens of ‖(a − b)·x‖².
double output_error(const std::vector<float>& a, const std::vector<float>& b, const std::vector<float>& x, int64_t rows,
                    int64_t cols) {
  double total = 0;
  for (size_t t = 0; t < x.size(); t += static_cast<size_t>(cols)) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t j = 0; j < cols; ++j) {
        const auto at = static_cast<size_t>(r * cols + j);
        sum += (static_cast<double>(a[at]) - static_cast<double>(b[at])) *
               static_cast<double>(x[t + static_cast<size_t>(j)]);
      }
      total += sum * sum;
    }
  }
  return total;
}

}  // namespace

TEST_CASE("products in float64, of whole tiles and of parts of them") {
  if (!test::has_gpu()) return;
  for (const bool accumulate : {false, true}) {
    check_product<double>(256, 192, accumulate, -1);
    check_product<double>(draw(1, 300), draw(1, 200), accumulate, -1);
    check_product<float>(draw(1, 300), draw(1, 200), accumulate, -1);
    check_product<double>(256, 512, accumulate, 128);
  }
}

TEST_CASE("the inverse of a Cholesky factor, and matrices that have none") {
  if (!test::has_gpu()) return;
  for (const int64_t n : {128, 256, 640}) {
    const std::vector<double> x = doubles(static_cast<size_t>(n * n));
    std::vector<double> a(static_cast<size_t>(n * n), NAN);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        double sum = i == j ? 0.1 * static_cast<double>(n) : 0;
        for (int64_t k = 0; k < n; ++k) sum += x[static_cast<size_t>(i * n + k)] * x[static_cast<size_t>(j * n + k)];
        a[static_cast<size_t>(i * n + j)] = sum / static_cast<double>(n);
      }
    }
    const OnGpu<double> work(static_cast<size_t>(inverse_work(n)));
    for (const bool is_definite : {true, false}) {
      const int64_t bad = draw(0, static_cast<int>(n) - 1);
      std::vector<double> given = a;
      if (!is_definite) given[static_cast<size_t>(bad * (n + 1))] *= -1;
      const OnGpu<double> a_gpu(given);
      const OnGpu<int32_t> failed(std::vector<int32_t>{0});
      require(invert_cholesky(a_gpu.get(), n, work.get(), failed.get(), nullptr));
      const std::vector<double> inverse = a_gpu.host();
      CHECK(failed.host()[0] == (is_definite ? 0 : 1));
      if (!is_definite) continue;
      const auto symmetric = [&](int64_t i, int64_t j) {
        return given[static_cast<size_t>(std::max(i, j) * n + std::min(i, j))];
      };
      // L⁻¹·A is L transposed: zeros below the diagonal, and the inverse of L⁻¹'s diagonal on it.
      double worst = 0;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          double sum = 0;
          for (int64_t k = 0; k <= i; ++k) sum += inverse[static_cast<size_t>(i * n + k)] * symmetric(k, j);
          const double wanted = i == j ? 1 / inverse[static_cast<size_t>(i * n + i)] : 0;
          worst = std::max(worst, std::abs(sum - wanted));
          if (std::isnan(sum)) worst = INFINITY;
        }
      }
      CHECK(worst < 1e-11);
    }
  }
}

TEST_CASE("the score at a rank is the CPU's") {
  if (!test::has_gpu()) return;
  ThreadPool pool(2);
  const OnGpu<uint8_t> work(std::vector<uint8_t>(kRankWork, 0));
  for (int round = 0; round < 12; ++round) {
    const int rows = draw(1, 300);
    const int cols = draw(1, 130);
    const int stride = cols + draw(0, 9);
    const bool is_scaled = round % 2 == 0;
    std::vector<float> weights = floats(static_cast<size_t>(rows * stride), 0.02f);
    // Many equal ones, and zeros.
    if (round % 3 == 0) {
      for (float& weight : weights) weight = std::round(weight * 100) / 100;
    }
    std::vector<float> scales = floats(static_cast<size_t>(cols));
    for (float& scale : scales) scale = is_scaled ? std::abs(scale) : 1.0f;
    std::vector<float> scores(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      const auto col = i % static_cast<size_t>(stride);
      scores[i] = col < scales.size() ? std::abs(weights[i]) * scales[col] : NAN;
    }
    const OnGpu<float> weights_gpu(weights);
    const OnGpu<float> scales_gpu(scales);
    const OnGpu<float> value(1);
    for (const int64_t rank : {-1, 0, draw(0, rows * cols - 1), rows * cols - 1}) {
      require(cuda::select_rank({.weights = weights_gpu.get(),
                                 .rows = rows,
                                 .cols = cols,
                                 .stride = stride,
                                 .scales = is_scaled ? scales_gpu.get() : nullptr,
                                 .rank = rank,
                                 .work = work.get(),
                                 .value = value.get()},
                                nullptr));
      const float wanted = rank < 0 ? -1.0f : espalier::select_rank(pool, scores.data(), rows, cols, stride, rank);
      CHECK(value.host()[0] == wanted);
    }
  }
}

TEST_CASE("SparseGPT chooses and corrects as the CPU does") {
  if (!test::has_gpu()) return;
  std::mt19937_64 random(reference::fresh_seed());
  ThreadPool pool(2);
  struct Shape {
    int64_t rows;
    int64_t cols;
    Budget budget;
    int64_t block;
    bool dead;         // two input columns that no token activates
    double shrinkage;  // towards another site's
  };
  const Shape shapes[] = {
      {37, 200, Budget::unstructured(0.5), 128, false, 0}, {300, 130, Budget::unstructured(0.7), 128, false, 0.3},
      {10, 300, Budget::unstructured(0.3), 96, true, 0},   {5, 20, Budget::unstructured(0.5), 128, false, 0},
      {37, 200, Budget::n_of_m(2, 4), 128, false, 0},      {20, 256, Budget::n_of_m(4, 8), 128, true, 0.1},
      {9, 270, Budget::n_of_m(1, 3), 128, false, 0},       {130, 384, Budget::n_of_m(16, 32), 128, false, 0},
      {6, 40, Budget::unstructured(0), 16, true, 0},
  };
  for (const Shape& shape : shapes) {
    CAPTURE(shape.rows);
    CAPTURE(shape.cols);
    const int64_t tokens = 2 * shape.cols;
    std::vector<float> x = reference::correlated_inputs(random, tokens, shape.cols);
    if (shape.dead) {
      for (int64_t t = 0; t < tokens; ++t) {
        x[static_cast<size_t>(t * shape.cols + 3)] = x[static_cast<size_t>((t + 1) * shape.cols - 1)] = 0;
      }
    }
    const SiteStatistics site = collect(pool, x, tokens, shape.cols);
    const bool is_pooled = shape.shrinkage > 0;
    const SiteStatistics pooled =
        collect(pool, reference::correlated_inputs(random, tokens, shape.cols), tokens, shape.cols);
    const std::vector<float> dense = floats(static_cast<size_t>(shape.rows * shape.cols), 0.02f);

    const Hessian hessian(site, {shape.shrinkage, is_pooled ? &pooled : nullptr});
    const Result<InverseFactor> factor = factor_inverse(pool, hessian, 0.01);
    REQUIRE(factor.is_ok());
    const SparseGptPlan plan{.budget = shape.budget, .block = shape.block};
    std::vector<float> wanted = dense;
    REQUIRE(prune_sparsegpt(pool, factor.value(), plan, wanted.data(), shape.rows).is_ok());

    Result<Stream> stream = Stream::create();
    REQUIRE(stream.is_ok());
    DeviceWalk walk(0, pool, stream.value().get());
    const int64_t stride = shape.cols + draw(0, 7);
    const OnGpu<float> gram(gram_of(site, stride));
    const OnGpu<float> pooled_gram(gram_of(pooled, shape.cols));
    const HessianScale& scale = hessian.scale();
    const Result<bool> factored = walk.factor({.gram = gram.get(),
                                               .stride = stride,
                                               .pooled = is_pooled ? pooled_gram.get() : nullptr,
                                               .width = shape.cols,
                                               .scale = scale.own,
                                               .pooled_scale = scale.pooled,
                                               .diagonal = scale.diagonal,
                                               .damping = 0.01});
    REQUIRE_MESSAGE(factored.is_ok(), factored.status().message());
    REQUIRE(factored.value());
    walk.set_dead(scale.dead);
    std::vector<float> found = dense;
    require(walk.prune(plan, found.data(), shape.rows));

    // Where two scores are as near as the last bits of the corrections, the choice may differ.
    int64_t other_choice = 0;
    double worst = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      const bool same = (found[i] != 0) == (wanted[i] != 0);
      other_choice += same ? 0 : 1;
      const double difference = std::abs(static_cast<double>(found[i]) - static_cast<double>(wanted[i]));
      worst = std::max(worst, std::isnan(found[i]) ? INFINITY : difference);
    }
    CHECK(other_choice <= 2);
    if (other_choice == 0) CHECK(worst < 1e-6);  // of weights of size 0.02
    const double loss = output_error(dense, found, x, shape.rows, shape.cols);
    CHECK(loss <= 1.001 * output_error(dense, wanted, x, shape.rows, shape.cols));
    CHECK(std::count(found.begin(), found.end(), 0.0f) == std::count(wanted.begin(), wanted.end(), 0.0f));
  }
}

TEST_CASE("a Gram matrix that is not positive definite is said to be so, and less damping is not enough") {
  if (!test::has_gpu()) return;
  std::mt19937_64 random(reference::fresh_seed());
  ThreadPool pool(2);
  const int64_t cols = 150;
  const SiteStatistics site = collect(pool, reference::correlated_inputs(random, 5, cols), 5, cols);
  std::vector<float> gram_host = gram_of(site, cols);
  gram_host[static_cast<size_t>(70 * cols + 71)] = 1e6f * site.gram(70, 70);
  const OnGpu<float> gram(gram_host);
  const HessianScale scale = Hessian(site, {}).scale();
  Result<Stream> stream = Stream::create();
  REQUIRE(stream.is_ok());
  DeviceWalk walk(0, pool, stream.value().get());
  HessianTask task{.gram = gram.get(), .stride = cols, .width = cols, .scale = scale.own, .damping = 0.01};
  const Result<bool> indefinite = walk.factor(task);
  REQUIRE(indefinite.is_ok());
  CHECK(!indefinite.value());
  const OnGpu<float> low_rank(gram_of(site, cols));
  task.gram = low_rank.get();
  const Result<bool> damped = walk.factor(task);
  REQUIRE(damped.is_ok());
  CHECK(damped.value());
}
