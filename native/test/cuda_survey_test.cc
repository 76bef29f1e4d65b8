// What a survey takes of experts' outputs on a GPU, against float64 on the host.
#include "gpu.h"
#include "kernels/cuda/calibration.h"
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

TEST_CASE("sums of columns have the bits of float64 sums in the order of the rows") {
  if (!test::has_gpu()) return;
  constexpr int kExperts = 3;
  const int cols = draw(1, 400);
  std::vector<double> wanted(static_cast<size_t>(kExperts * cols), 0.0);
  const OnGpu<double> sums(wanted);
  for (int batch = 0; batch < 3; ++batch) {
    std::vector<GemmGroup> groups(kExperts);
    int rows = 0;
    for (GemmGroup& group : groups) {
      group.first_row = rows;
      group.rows = draw(0, 50);
      rows += group.rows;
    }
    const std::vector<float> x = floats(static_cast<size_t>((rows + 1) * cols));
    const OnGpu<GemmGroup> groups_gpu(groups);
    const OnGpu<float> x_gpu(x);
    require(add_columns(
        {.groups = groups_gpu.get(), .group_count = kExperts, .x = x_gpu.get(), .cols = cols, .sums = sums.get()},
        nullptr));
    require(to_status(cudaDeviceSynchronize(), "add_columns"));
    for (int e = 0; e < kExperts; ++e) {
      const GemmGroup& group = groups[static_cast<size_t>(e)];
      for (int r = group.first_row; r < group.first_row + group.rows; ++r) {
        for (int j = 0; j < cols; ++j) {
          wanted[static_cast<size_t>(e * cols + j)] += static_cast<double>(x[static_cast<size_t>(r * cols + j)]);
        }
      }
    }
  }
  CHECK(sums.host() == wanted);
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
