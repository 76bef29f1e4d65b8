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

TEST_CASE("sigmoid agrees with float64, far into both tails") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const int64_t n : kSizes) {
      const std::vector<float> x = test::normal_floats(random, static_cast<size_t>(n), 30);
      std::vector<float> out = x;
      kernels->sigmoid(out.data(), n);
      for (size_t i = 0; i < x.size(); ++i) {
        const double exact = 1 / (1 + std::exp(-static_cast<double>(x[i])));
        CHECK(std::abs(static_cast<double>(out[i]) - exact) <= 4e-7 * exact + 1e-37);
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

TEST_CASE("rotation by RoPE's angles agrees with float64") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const int64_t half : {1, 4, 16, 20, 40, 64, 128}) {
      const int64_t heads = 3;
      const auto n = static_cast<size_t>(half);
      const std::vector<float> angles = test::normal_floats(random, n, 5);
      std::vector<float> cosines(n);
      std::vector<float> sines(n);
      for (size_t i = 0; i < n; ++i) {
        cosines[i] = std::cos(angles[i]);
        sines[i] = std::sin(angles[i]);
      }
      const std::vector<float> x = test::normal_floats(random, 2 * n * static_cast<size_t>(heads));
      std::vector<float> out = x;
      kernels->rotate(out.data(), heads, half, cosines.data(), sines.data());
      for (size_t at = 0; at < x.size(); ++at) {
        const size_t i = at % n;
        const bool second = at / n % 2 == 1;
        const double a = static_cast<double>(second ? x[at - n] : x[at]);
        const double b = static_cast<double>(second ? x[at] : x[at + n]);
        const double cosine = static_cast<double>(cosines[i]);
        const double sine = static_cast<double>(sines[i]);
        const double exact = second ? b * cosine + a * sine : a * cosine - b * sine;
        CHECK(std::abs(static_cast<double>(out[at]) - exact) <= 1.2e-7 * (std::abs(a) + std::abs(b)));
      }
    }
  }
}
