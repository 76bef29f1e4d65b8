#include <cmath>
#include <cstring>

#include "kernel_sets.h"
#include "kernels/cpu/kernels.h"
#include "test_main.h"

using namespace espalier;

namespace {

struct Problem {
  int64_t rows, cols, tokens;
  std::vector<float> weights;  // bf16-representable
  std::vector<float> x;        // [tokens][cols], one spare zero behind
};

Problem make_problem(std::mt19937& random, int64_t rows, int64_t cols, int64_t tokens, bool two_of_four) {
  Problem p{rows, cols, tokens, test::normal_floats(random, static_cast<size_t>(rows * cols)),
            test::normal_floats(random, static_cast<size_t>(tokens * cols))};
  p.x.resize(p.x.size() + 64, 0.0f);
  std::bernoulli_distribution keep(0.5);
  for (size_t i = 0; i < p.weights.size(); ++i) {
    const bool kept = two_of_four ? (i % 4 == 0 || i % 4 == 3) : keep(random);
    p.weights[i] = kept ? bf16_to_float(float_to_bf16(p.weights[i])) : 0.0f;
  }
  return p;
}

PackedMatrix pack(const Problem& p, const Format& format) {
  ThreadPool pool(1);
  auto packed = PackedMatrix::pack(pool, format, p.rows, p.cols, [&](int64_t row, float* out) {
    std::copy_n(p.weights.begin() + row * p.cols, p.cols, out);
  });
  REQUIRE(packed.is_ok());
  return std::move(packed.value());
}

std::vector<float> multiply(const CpuKernels& kernels, const Problem& p, const PackedMatrix& packed, int64_t tokens) {
  std::vector<float> y(static_cast<size_t>(tokens * p.rows), std::nanf(""));
  kernels.matmul(packed.format())(packed, 0, packed.tile_rows(), p.x.data(), p.cols, tokens, y.data(), p.rows);
  return y;
}

const Format kFormats[] = {{Storage::kDense, DType::kBF16},
                           {Storage::kBitmap, DType::kBF16},
                           {Storage::kNm, DType::kBF16, 2, 4},
                           {Storage::kDense, DType::kF32}};

}  // namespace

TEST_CASE("every product agrees with float64 on every instruction set") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const Format& format : kFormats) {
      for (const auto& shape : {std::pair<int64_t, int64_t>{16, 32}, {33, 288}, {200, 96}, {7, 1024}}) {
        const int64_t rows = shape.first;
        const int64_t cols = shape.second;
        for (const int64_t tokens : {1, 2, 3, 8, 9, 31}) {
          CAPTURE(isa_name(kernels->isa));
          CAPTURE(format.name());
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(tokens);
          const Problem p = make_problem(random, rows, cols, tokens, format.storage == Storage::kNm);
          const std::vector<float> y = multiply(*kernels, p, pack(p, format), tokens);
          double worst = 0;
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t r = 0; r < rows; ++r) {
              double exact = 0;
              double magnitude = 0;
              for (int64_t k = 0; k < cols; ++k) {
                const double term = static_cast<double>(p.weights[static_cast<size_t>(r * cols + k)]) *
                                    static_cast<double>(p.x[static_cast<size_t>(t * cols + k)]);
                exact += term;
                magnitude += std::abs(term);
              }
              const double error = std::abs(static_cast<double>(y[static_cast<size_t>(t * rows + r)]) - exact);
              worst = std::max(worst, magnitude > 0 ? error / magnitude : error);
            }
          }
          // A chain of cols / 2 float32 additions: |error| ≤ cols / 2 · 2⁻²⁴ · Σ|terms|, in practice far less.
          CHECK(worst <= static_cast<double>(cols) / 2 * std::pow(2.0, -24));
        }
      }
    }
  }
}

TEST_CASE("sparse products give the bits of the dense product with zeros in place") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const int64_t tokens : {1, 5, 40}) {
      const Problem p = make_problem(random, 50, 192, tokens, true);
      const std::vector<float> dense = multiply(*kernels, p, pack(p, kFormats[0]), tokens);
      CHECK(multiply(*kernels, p, pack(p, kFormats[1]), tokens) == dense);
      CHECK(multiply(*kernels, p, pack(p, kFormats[2]), tokens) == dense);
    }
  }
}

TEST_CASE("a token's product does not depend on the other tokens of the call") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const Format& format : kFormats) {
      const Problem p = make_problem(random, 40, 352, 21, format.storage == Storage::kNm);
      const PackedMatrix packed = pack(p, format);
      const std::vector<float> together = multiply(*kernels, p, packed, p.tokens);
      for (int64_t t = 0; t < p.tokens; ++t) {
        std::vector<float> alone(static_cast<size_t>(p.rows));
        kernels->matmul(format)(packed, 0, packed.tile_rows(), p.x.data() + t * p.cols, p.cols, 1, alone.data(),
                                p.rows);
        CHECK(std::memcmp(alone.data(), together.data() + t * p.rows, alone.size() * sizeof(float)) == 0);
      }
    }
  }
}
