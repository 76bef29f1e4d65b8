// Products by the experts of a layer on a GPU, against float64 on the host.
#include <algorithm>
#include <climits>
#include <numeric>

#include "gpu.h"
#include "kernels/cuda/divisor.h"
#include "kernels/cuda/product.h"
#include "tiling.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::OnGpu;
using test::require;
using test::silu;

TEST_CASE("dividing by a number that the host knows") {
  std::mt19937 random(test::fresh_seed());
  std::uniform_int_distribution<int> bits(0, 30);
  const auto any = [&] { return static_cast<int>((random() | 1u << 31) >> (31 - bits(random)) >> 1); };
  std::vector<int> divisors = {1, 2, 3, 5, 7, 12, 641, 65535, 65536, 65537, INT_MAX / 2, INT_MAX - 1, INT_MAX};
  for (int i = 0; i < 1000; ++i) divisors.push_back(std::max(any(), 1));
  for (const int divisor : divisors) {
    const Divisor by(divisor);
    CAPTURE(divisor);
    std::vector<int> numbers = {0, 1, divisor - 1, divisor, INT_MAX - 1, INT_MAX, INT_MAX / divisor * divisor};
    numbers.push_back(INT_MAX / divisor * divisor - 1);
    for (int i = 0; i < 100; ++i) numbers.push_back(any());
    for (const int number : numbers) REQUIRE(by.divide(number) == number / divisor);
  }
}

TEST_CASE("products of experts by index, of inputs in one and two parts") {
  if (!test::has_gpu()) return;
  ThreadPool pool(4);
  constexpr int kExperts = 5;
  for (const test::Tiling& pattern : test::all_tilings(0.5)) {
    for (const auto& [rows, cols] : {std::pair{64, 192}, {33, 1056}, {416, 64}}) {
      std::vector<std::vector<float>> matrices;
      const Result<TiledWeights> tiled =
          test::tile_random(test::generator(), pool, pattern, kExperts, rows, cols, matrices);
      require(tiled.status());
      const OnGpu<uint8_t> tiles(
          std::vector<uint8_t>(tiled.value().tiles.data(), tiled.value().tiles.data() + tiled.value().tiles.size()));
      const OnGpu<uint32_t> starts(tiled.value().starts);
      for (const int parts : {1, 2}) {
        for (const int tokens : test::some_of({1, 3, 4, 8, 9, 16}, 2)) {
          if (tokens * parts > kMostFewRows) continue;
          CAPTURE(layout_name(pattern.layout, pattern.n));
          CAPTURE(rows);
          CAPTURE(parts);
          CAPTURE(tokens);
          constexpr int kInputs = 7;
          constexpr int kGroups = 6;
          const std::vector<float> x = floats(static_cast<size_t>(kInputs) * cols);
          const std::vector<uint16_t> bits = test::split_parts(x, kInputs, cols, parts);
          const std::vector<double> seen = test::join_parts(bits, kInputs, cols, parts);
          std::vector<int32_t> experts(kGroups);
          std::vector<int32_t> inputs(static_cast<size_t>(kGroups) * tokens);
          for (int32_t& e : experts) e = draw(-1, kExperts - 1);
          experts[2] = -1;
          experts[3] = 0;
          for (int32_t& i : inputs) i = draw(-1, kInputs - 1);
          inputs[static_cast<size_t>(3) * tokens] = 1;
          const OnGpu<uint16_t> x_gpu(bits);
          const OnGpu<int32_t> experts_gpu(experts);
          const OnGpu<int32_t> inputs_gpu(inputs);
          const OnGpu<float> y(inputs.size() * static_cast<size_t>(rows));
          Product product;
          product.weights = describe_tiles(tiled.value(), tiles.get(), starts.get());
          product.groups = kGroups;
          product.tokens = tokens;
          product.parts = parts;
          product.x = x_gpu.get();
          product.experts = experts_gpu.get();
          product.inputs = inputs_gpu.get();
          product.y = y.get();
          product.output = OutputType::kF32;
          require(launch_product(product, nullptr));
          const std::vector<float> all = y.host();
          std::vector<float> found;
          std::vector<double> wanted;
          for (size_t pair = 0; pair < inputs.size(); ++pair) {
            const int expert = experts[pair / static_cast<size_t>(tokens)];
            if (expert < 0 || inputs[pair] < 0) continue;
            for (int r = 0; r < rows; ++r) {
              double sum = 0;
              for (int k = 0; k < cols; ++k) {
                sum += static_cast<double>(matrices[static_cast<size_t>(expert)][static_cast<size_t>(r * cols + k)]) *
                       seen[static_cast<size_t>(inputs[pair] * cols + k)];
              }
              wanted.push_back(sum);
              found.push_back(all[pair * static_cast<size_t>(rows) + static_cast<size_t>(r)]);
            }
          }
          CHECK(test::relative_error(found, wanted) < 1e-5);
        }
      }
    }
  }
}

TEST_CASE("gated products of rows in several groups") {
  if (!test::has_gpu()) return;
  ThreadPool pool(4);
  for (const auto& [width, cols, rows] : {std::tuple{32, 64, 1}, {96, 192, 50}, {768, 2048, 3}, {352, 160, 33}}) {
    for (const int parts : {1, 2}) {
      CAPTURE(width);
      CAPTURE(parts);
      const auto elements = static_cast<size_t>(width) * static_cast<size_t>(cols);
      const std::vector<float> gate =
          test::sparse_weights(test::generator(), width, cols, {Storage::kDense, Values::kBf16}, 1);
      const std::vector<float> up =
          test::sparse_weights(test::generator(), width, cols, {Storage::kDense, Values::kBf16}, 1);
      std::vector<float> both(2 * elements);
      for (int r = 0; r < width; ++r) {
        const int to = r / 8 * 16 + r % 8;
        std::copy_n(gate.begin() + r * cols, cols, both.begin() + to * cols);
        std::copy_n(up.begin() + r * cols, cols, both.begin() + (to + 8) * cols);
      }
      const MatrixSource source(DType::kF32, 2 * width, cols, both.data());
      const Result<TiledWeights> tiled = tile_weights(pool, cuda::TileLayout::kDense, {&source, 1});
      require(tiled.status());
      const OnGpu<uint8_t> tiles(
          std::vector<uint8_t>(tiled.value().tiles.data(), tiled.value().tiles.data() + tiled.value().tiles.size()));
      Product product;
      product.weights = describe_tiles(tiled.value(), tiles.get(), nullptr);
      product.tokens = std::min(rows, kMostFewRows / parts);
      product.groups = (rows + product.tokens - 1) / product.tokens;
      product.parts = parts;
      const int padded = product.groups * product.tokens;
      const std::vector<float> x = floats(static_cast<size_t>(padded) * cols, 1 / std::sqrt(static_cast<float>(cols)));
      const std::vector<uint16_t> bits = test::split_parts(x, padded, cols, parts);
      const std::vector<double> seen = test::join_parts(bits, padded, cols, parts);
      const OnGpu<uint16_t> x_gpu(bits);
      const OnGpu<uint16_t> y(static_cast<size_t>(padded * parts * width));
      product.x = x_gpu.get();
      product.y = y.get();
      product.output = OutputType::kGated;
      require(launch_product(product, nullptr));
      std::vector<double> wanted;
      for (int row = 0; row < rows; ++row) {
        for (int r = 0; r < width; ++r) {
          double g = 0;
          double u = 0;
          for (int k = 0; k < cols; ++k) {
            const double value = seen[static_cast<size_t>(row * cols + k)];
            g += static_cast<double>(gate[static_cast<size_t>(r * cols + k)]) * value;
            u += static_cast<double>(up[static_cast<size_t>(r * cols + k)]) * value;
          }
          wanted.push_back(silu(g) * u);
        }
      }
      CHECK(test::relative_error(test::join_parts(y.host(), rows, width, parts), wanted) < test::parts_error(parts));
    }
  }
}
