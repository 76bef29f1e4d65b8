#include <cmath>

#include "kernel_sets.h"
#include "kernels/cpu/kernels.h"
#include "test_main.h"

using namespace espalier;

namespace {

double relative(double value, double exact) { return std::abs(value - exact) / std::max(1e-30, std::abs(exact)); }

constexpr int64_t kSizes[] = {1, 2, 15, 16, 17, 64, 192, 1000};

}  // namespace

TEST_CASE("RMSNorm agrees with float64") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const int64_t n : kSizes) {
      const std::vector<float> x = test::normal_floats(random, static_cast<size_t>(n), 3);
      const std::vector<float> weight = test::normal_floats(random, static_cast<size_t>(n));
      std::vector<float> out(static_cast<size_t>(n));
      kernels->rms_norm(x.data(), weight.data(), n, 1e-5f, out.data());
      double squares = 0;
      for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
      for (size_t i = 0; i < x.size(); ++i) {
        const double exact = static_cast<double>(x[i]) / std::sqrt(squares / static_cast<double>(n) + 1e-5) *
                             static_cast<double>(weight[i]);
        CHECK(relative(static_cast<double>(out[i]), exact) < 1e-6);
      }
    }
  }
}

TEST_CASE("silu(gate) · up agrees with float64, far into both tails") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const float scale : {1.0f, 30.0f}) {
      const std::vector<float> gate = test::normal_floats(random, 333, scale);
      const std::vector<float> up = test::normal_floats(random, 333);
      std::vector<float> out(333);
      kernels->silu_multiply(gate.data(), up.data(), 333, out.data());
      for (size_t i = 0; i < out.size(); ++i) {
        const double g = static_cast<double>(gate[i]);
        const double exact = g / (1 + std::exp(-g)) * static_cast<double>(up[i]);
        CHECK(std::abs(static_cast<double>(out[i]) - exact) <= 1e-6 * std::abs(exact) + 1e-35);
      }
    }
  }
}

TEST_CASE("softmax and log-sum-exp agree with float64") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const int64_t n : kSizes) {
      for (const float scale : {1.0f, 50.0f}) {
        std::vector<float> x = test::normal_floats(random, static_cast<size_t>(n), scale);
        double maximum = -1e300;
        for (const float v : x) maximum = std::max(maximum, static_cast<double>(v));
        double total = 0;
        for (const float v : x) total += std::exp(static_cast<double>(v) - maximum);
        CHECK(std::abs(kernels->log_sum_exp(x.data(), n) - (maximum + std::log(total))) < 2e-6);
        const std::vector<float> logits = x;
        kernels->softmax(x.data(), n);
        for (size_t i = 0; i < x.size(); ++i) {
          const double below = maximum - static_cast<double>(logits[i]);
          const double exact = std::exp(-below) / total;
          // The distance to the maximum is rounded to a float, half a unit in the last place, before the exponential.
          CHECK(std::abs(static_cast<double>(x[i]) - exact) <= (2e-6 + below * 0x1p-24) * exact + 1e-30);
        }
      }
    }
  }
}

TEST_CASE("attention over scattered blocks agrees with float64, windowed or not, and ignores stale cache") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const int head_dim : {8, 32, 40, 128}) {
      for (const auto& keys_seen : {std::pair<int64_t, int64_t>{0, 1}, {0, 16}, {0, 37}, {21, 37}, {30, 61}}) {
        const int64_t first = keys_seen.first;
        const int64_t last = keys_seen.second;
        CAPTURE(head_dim);
        CAPTURE(first);
        CAPTURE(last);
        const int64_t stride = static_cast<int64_t>(kKvBlock) * head_dim;
        const std::vector<int32_t> blocks = {5, 0, 3, 1};
        // What was never written is NaN.
        std::vector<float> keys(static_cast<size_t>(8 * stride), std::nanf(""));
        std::vector<float> values(keys.size(), std::nanf(""));
        const std::vector<float> query = test::normal_floats(random, static_cast<size_t>(head_dim));
        const std::vector<float> k = test::normal_floats(random, static_cast<size_t>(last * head_dim));
        const std::vector<float> v = test::normal_floats(random, static_cast<size_t>(last * head_dim));
        for (int64_t p = 0; p < last; ++p) {
          const int64_t block = blocks[static_cast<size_t>(p / kKvBlock)] * stride;
          for (int d = 0; d < head_dim; ++d) {
            keys[static_cast<size_t>(block + d * kKvBlock + p % kKvBlock)] = k[static_cast<size_t>(p * head_dim + d)];
            values[static_cast<size_t>(block + p % kKvBlock * head_dim + d)] = v[static_cast<size_t>(p * head_dim + d)];
          }
        }
        std::vector<float> scores(128);
        std::vector<float> out(static_cast<size_t>(head_dim));
        kernels->attend({query.data(), blocks.data(), keys.data(), values.data(), stride, head_dim, first, last, 0.3f,
                         scores.data(), out.data()});
        std::vector<double> exact(static_cast<size_t>(head_dim), 0.0);
        double total = 0;
        for (int64_t p = first; p < last; ++p) {
          double dot = 0;
          for (int d = 0; d < head_dim; ++d)
            dot += static_cast<double>(query[static_cast<size_t>(d)]) *
                   static_cast<double>(k[static_cast<size_t>(p * head_dim + d)]);
          const double weight = std::exp(dot * static_cast<double>(0.3f));
          total += weight;
          for (int d = 0; d < head_dim; ++d)
            exact[static_cast<size_t>(d)] += weight * static_cast<double>(v[static_cast<size_t>(p * head_dim + d)]);
        }
        for (int d = 0; d < head_dim; ++d) {
          CHECK(static_cast<double>(out[static_cast<size_t>(d)]) ==
                doctest::Approx(exact[static_cast<size_t>(d)] / total).epsilon(2e-5));
        }
      }
    }
  }
}
