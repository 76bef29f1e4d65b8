// Products of many rows on a GPU, against float64 on the host and the bound that gemm.h states.
#include <numeric>

#include "gpu.h"
#include "kernels/cuda/gemm.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::OnGpu;
using test::require;

namespace {

// Floats that so many bf16 parts hold exactly.
std::vector<float> held_by(std::vector<float> values, int parts) {
  for (float& value : values) {
    float held = 0;
    for (int p = 0; p < parts; ++p) held += bf16_to_float(float_to_bf16(value - held));
    value = held;
  }
  return values;
}

struct Case {
  int depth;
  int cols;
  int weight_parts;
  std::vector<int> group_rows;
};

// The largest |found − wanted| of the bound on it.
double worst_of_bound(const Case& c, bool accumulate) {
  const int rows = std::accumulate(c.group_rows.begin(), c.group_rows.end(), 0);
  const int inputs = rows + 7;
  const int stride = part_stride(c.depth);
  const auto count = [](int64_t a, int64_t b) { return static_cast<size_t>(a * b); };
  const std::vector<float> x = floats(count(inputs, c.depth));
  const OnGpu<uint16_t> x_gpu(test::split_parts(x, inputs, c.depth, kGemmParts));
  std::vector<int32_t> from(static_cast<size_t>(rows));
  for (int32_t& row : from) row = draw(0, inputs - 1);
  const OnGpu<int32_t> from_gpu(from);
  std::vector<std::vector<float>> weights;
  std::vector<OnGpu<uint16_t>> weights_gpu;
  std::vector<GemmGroup> groups;
  weights_gpu.reserve(c.group_rows.size());
  int first_row = 0;
  for (const int of_group : c.group_rows) {
    weights.push_back(held_by(floats(count(c.cols, c.depth), 0.1f), c.weight_parts));
    weights_gpu.emplace_back(test::split_parts(weights.back(), c.cols, c.depth, c.weight_parts));
    groups.push_back({.weights = weights_gpu.back().get(), .first_row = first_row, .rows = of_group});
    first_row += of_group;
  }
  const int32_t tiles = place_tiles(groups, c.cols);
  const OnGpu<GemmGroup> groups_gpu(groups);
  const std::vector<float> before = floats(count(rows, c.cols));
  const OnGpu<float> y = accumulate ? OnGpu<float>(before) : OnGpu<float>(before.size());
  require(gemm({.groups = groups_gpu.get(),
                .group_count = static_cast<int32_t>(groups.size()),
                .tiles = tiles,
                .x = x_gpu.get(),
                .rows = from_gpu.get(),
                .depth = stride,
                .cols = c.cols,
                .weight_parts = c.weight_parts,
                .y = y.get(),
                .accumulate = accumulate},
               nullptr));
  const std::vector<float> found = y.host();
  const double bound = (c.weight_parts == 1 ? 1 : 3) * std::ldexp(1, -17) + stride / 8.0 * std::ldexp(1, -23);
  double worst = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (int r = groups[g].first_row; r < groups[g].first_row + groups[g].rows; ++r) {
      const float* row = x.data() + count(from[static_cast<size_t>(r)], c.depth);
      for (int j = 0; j < c.cols; ++j) {
        const float* w = weights[g].data() + count(j, c.depth);
        double sum = 0;
        double size = 0;
        for (int k = 0; k < c.depth; ++k) {
          const double product = static_cast<double>(row[k]) * static_cast<double>(w[k]);
          sum += product;
          size += std::abs(product);
        }
        const size_t at = count(r, c.cols) + static_cast<size_t>(j);
        double allowed = bound * size;
        if (accumulate) {
          sum += static_cast<double>(before[at]);
          allowed += std::ldexp(std::abs(sum), -24);
        }
        const double part = std::abs(static_cast<double>(found[at]) - sum) / allowed;
        worst = std::isnan(part) ? INFINITY : std::max(worst, part);
      }
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("tiles of groups follow each other, those of empty ones take no place") {
  std::vector<GemmGroup> groups(4);
  groups[0].rows = 1;
  groups[1].rows = 0;
  groups[2].rows = kGemmRows + 1;
  groups[3].rows = kGemmRows;
  CHECK(place_tiles(groups, kGemmCols + 1) == 2 + 4 + 2);
  CHECK(groups[0].first_tile == 0);
  CHECK(groups[1].first_tile == 2);
  CHECK(groups[2].first_tile == 2);
  CHECK(groups[3].first_tile == 6);
}

TEST_CASE("products of many rows are within their bound of float64") {
  if (!test::has_gpu()) return;
  for (const int weight_parts : {1, 2}) {
    const std::vector<Case> cases = {
        {32, 1, weight_parts, {1}},
        // Rounding of few products hardly cancels.
        {draw(1, 4), 60, weight_parts, {200}},
        {100, 300, weight_parts, {0, 5, 130, 0, 256, 0}},
        {draw(1, 400), draw(1, 600), weight_parts, {draw(0, 300), draw(1, 300), draw(0, 300)}},
        {4096, 64, weight_parts, {96, 160}},
    };
    for (const Case& c : test::some_of(cases, 1)) {
      for (const bool accumulate : {false, true}) {
        CAPTURE(c.depth);
        CAPTURE(c.cols);
        CAPTURE(weight_parts);
        const double worst = worst_of_bound(c, accumulate);
        MESSAGE("depth " << c.depth << ", parts " << weight_parts << ": " << worst << " of the bound");
        CHECK(worst < 1);
      }
    }
  }
}

TEST_CASE("the upper triangle of a product is whole") {
  if (!test::has_gpu()) return;
  const int size = 700;
  const int depth = 64;
  const std::vector<float> x = floats(static_cast<size_t>(size * depth));
  const OnGpu<uint16_t> x_gpu(test::split_parts(x, size, depth, kGemmParts));
  std::vector<GemmGroup> groups = {{.weights = x_gpu.get(), .first_row = 0, .rows = size}};
  const int32_t tiles = place_tiles(groups, size);
  const OnGpu<GemmGroup> groups_gpu(groups);
  const OnGpu<float> y(static_cast<size_t>(size) * size);
  require(gemm({.groups = groups_gpu.get(),
                .group_count = 1,
                .tiles = tiles,
                .x = x_gpu.get(),
                .depth = depth,
                .cols = size,
                .weight_parts = kGemmParts,
                .y = y.get(),
                .upper = true},
               nullptr));
  const std::vector<float> all = y.host();
  std::vector<float> found;
  std::vector<double> wanted;
  for (size_t i = 0; i < size; ++i) {
    for (size_t j = i; j < size; ++j) {
      double sum = 0;
      for (size_t k = 0; k < depth; ++k)
        sum += static_cast<double>(x[i * depth + k]) * static_cast<double>(x[j * depth + k]);
      found.push_back(all[i * size + j]);
      wanted.push_back(sum);
    }
  }
  CHECK(test::relative_error(found, wanted) < 1e-5);
  // The last row's first tile has nothing of it.
  CHECK(std::isnan(all[static_cast<size_t>(size - 1) * size]));
}
