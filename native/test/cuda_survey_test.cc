// What a survey takes of experts' outputs on a GPU, against float64 on the host.
#include "gpu.h"
#include "kernels/cuda/expert_outputs.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::OnGpu;
using test::require;

TEST_CASE("squared lengths of rows") {
  if (!test::has_gpu()) return;
  for (const int cols : {1, 31, 300, 5000}) {
    const int rows = draw(1, 60);
    const std::vector<float> x = floats(static_cast<size_t>(rows * cols));
    const OnGpu<float> x_gpu(x);
    const OnGpu<double> squares(static_cast<size_t>(rows));
    require(row_squares({.x = x_gpu.get(), .rows = rows, .cols = cols, .squares = squares.get()}, nullptr));
    const std::vector<double> found = squares.host();
    for (int r = 0; r < rows; ++r) {
      double wanted = 0;
      for (int j = 0; j < cols; ++j) {
        const auto value = static_cast<double>(x[static_cast<size_t>(r * cols + j)]);
        wanted += value * value;
      }
      CHECK(found[static_cast<size_t>(r)] == doctest::Approx(wanted).epsilon(1e-13));
    }
  }
}

TEST_CASE("Gram matrices of the experts' outputs for a token") {
  if (!test::has_gpu()) return;
  for (const int experts : {1, 3, 8, 21}) {
    const int tokens = draw(1, 20);
    const int hidden = draw(1, 600);
    const std::vector<float> outputs = floats(static_cast<size_t>(experts * tokens * hidden));
    const OnGpu<float> outputs_gpu(outputs);
    const OnGpu<double> grams(static_cast<size_t>(tokens * experts * experts));
    require(output_grams(
        {.outputs = outputs_gpu.get(), .experts = experts, .tokens = tokens, .hidden = hidden, .grams = grams.get()},
        nullptr));
    const std::vector<double> found = grams.host();
    double worst = 0;
    for (int t = 0; t < tokens; ++t) {
      for (int i = 0; i < experts; ++i) {
        for (int j = 0; j < experts; ++j) {
          double wanted = 0;
          double size = 0;
          for (int h = 0; h < hidden; ++h) {
            const auto a = static_cast<double>(outputs[static_cast<size_t>((i * tokens + t) * hidden + h)]);
            const auto b = static_cast<double>(outputs[static_cast<size_t>((j * tokens + t) * hidden + h)]);
            wanted += a * b;
            size += std::abs(a * b);
          }
          const double error = found[static_cast<size_t>((t * experts + i) * experts + j)] - wanted;
          // Not std::max, which a NaN would pass.
          if (!(std::abs(error) <= worst * size)) worst = std::abs(error) / size;
        }
      }
    }
    CHECK(worst < 1e-13);
  }
}
