// Products of many tokens on a GPU, against float64 on the host.
#include <algorithm>
#include <memory>

#include "engine/cuda/group_size.h"
#include "gpu.h"
#include "kernels/cuda/dense_products.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/routing.h"
#include "tiling.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::OnGpu;
using test::require;

namespace {

bool has_products() {
  if (!test::has_gpu()) return false;
  if (has_wide_products(0)) return true;
  MESSAGE("skipped: the GPU has no products of warpgroups");
  return false;
}

const std::vector<test::Tiling> kPatterns = test::all_tilings(0.4);

// Experts of one shape on the host and, as tiles, on the device.
struct Experts {
  std::vector<std::vector<float>> matrices;
  TiledWeights host;
  std::unique_ptr<OnGpu<uint8_t>> tiles;
  std::unique_ptr<OnGpu<uint32_t>> starts;

  Experts(ThreadPool& pool, const test::Tiling& pattern, int count, int rows, int cols) {
    Result<TiledWeights> tiled = test::tile_random(test::generator(), pool, pattern, count, rows, cols, matrices);
    require(tiled.status());
    host = std::move(tiled.value());
    // What codes stand for is rounded before it is multiplied.
    for (auto& values : matrices) {
      for (float& value : values) value = bf16_to_float(float_to_bf16(value));
    }
    tiles = std::make_unique<OnGpu<uint8_t>>(
        std::vector<uint8_t>(host.tiles.data(), host.tiles.data() + host.tiles.size()));
    starts = std::make_unique<OnGpu<uint32_t>>(host.starts);
  }
  DeviceTiles view() const { return describe_tiles(host, tiles->get(), starts->get()); }
  double product(int expert, int row, const double* x) const {
    const std::vector<float>& matrix = matrices[static_cast<size_t>(expert)];
    double sum = 0;
    for (int64_t k = 0; k < host.cols; ++k)
      sum += static_cast<double>(matrix[static_cast<size_t>(row * host.cols + k)]) * x[k];
    return sum;
  }
};

// A code's weight may be rounded twice.
double limit(const test::Tiling& pattern) { return holds_codes(pattern.layout) ? 5e-4 : 1e-5; }

double silu(double x) { return x / (1 + std::exp(-x)); }

}  // namespace

TEST_CASE("products of many tokens by experts") {
  if (!has_products()) return;
  ThreadPool pool(4);
  struct Case {
    int rows, cols, tokens, parts;
    WideTuning tuning;
  };
  const Case cases[] = {{64, 192, 19, 1, {}},       {33, 1056, 32, 2, {1, 2}},  {416, 64, 50, 1, {1, 2}},
                        {150, 608, 64, 2, {2, 0}},  {272, 352, 100, 1, {}},     {192, 416, 128, 2, {1, 1}},
                        {96, 1120, 300, 1, {1, 2}}, {416, 640, 200, 1, {1, 1}}, {160, 544, 131, 2, {4, 0}}};
  constexpr int kExperts = 3;
  constexpr int kGroups = 4;
  for (const test::Tiling& pattern : kPatterns) {
    for (const Case& of : cases) {
      CAPTURE(layout_name(pattern.layout, pattern.n));
      CAPTURE(of.rows);
      CAPTURE(of.parts);
      CAPTURE(of.tokens);
      const Experts experts(pool, pattern, kExperts, of.rows, of.cols);
      const int pairs = kGroups * of.tokens;
      const std::vector<uint16_t> bits = test::split_parts(
          floats(static_cast<size_t>(pairs) * static_cast<size_t>(of.cols)), pairs, of.cols, of.parts);
      const std::vector<double> seen = test::join_parts(bits, pairs, of.cols, of.parts);
      std::vector<int32_t> chosen = {draw(0, kExperts - 1), -1, draw(0, kExperts - 1), draw(0, kExperts - 1)};
      const OnGpu<uint16_t> x(bits);
      const OnGpu<int32_t> chosen_gpu(chosen);
      const OnGpu<float> y(static_cast<size_t>(pairs) * static_cast<size_t>(of.rows));
      Product product;
      product.weights = experts.view();
      product.groups = kGroups;
      product.tokens = of.tokens;
      product.parts = of.parts;
      product.x = x.get();
      product.experts = chosen_gpu.get();
      product.y = y.get();
      product.output = OutputType::kF32;
      require(launch_wide_product(product, nullptr, of.tuning));
      const std::vector<float> all = y.host();
      std::vector<float> found;
      std::vector<double> wanted;
      bool left_alone = true;
      for (int pair = 0; pair < pairs; ++pair) {
        const int expert = chosen[static_cast<size_t>(pair / of.tokens)];
        for (int r = 0; r < of.rows; ++r) {
          const float value = all[static_cast<size_t>(pair) * static_cast<size_t>(of.rows) + static_cast<size_t>(r)];
          if (expert < 0) {
            left_alone = left_alone && std::isnan(value);
            continue;
          }
          // One in four, and all of the last rows and tokens.
          if ((r + pair) % 4 != 0 && r + 20 < of.rows && pair % of.tokens + 3 < of.tokens) continue;
          found.push_back(value);
          wanted.push_back(experts.product(expert, r, seen.data() + static_cast<ptrdiff_t>(pair) * of.cols));
        }
      }
      CHECK(left_alone);
      CHECK(test::relative_error(found, wanted) < limit(pattern));

      const OnGpu<uint16_t> rounded(static_cast<size_t>(pairs) * static_cast<size_t>(of.rows));
      product.y = rounded.get();
      product.output = OutputType::kBf16;
      require(launch_wide_product(product, nullptr, of.tuning));
      const std::vector<uint16_t> rounded_all = rounded.host();
      bool same = true;
      for (size_t i = 0; i < all.size(); ++i) {
        same = same && (rounded_all[i] == float_to_bf16(all[i]) || (std::isnan(all[i]) && rounded_all[i] == 0xffff));
      }
      CHECK(same);
    }
  }
}

TEST_CASE("a product whose last row blocks have a launch of their own") {
  if (!has_products()) return;
  ThreadPool pool(4);
  // On 132 multiprocessors one round, and 16 blocks that split their inputs; several rounds on smaller devices.
  constexpr int kRows = 1140;
  constexpr int kCols = 2080;
  constexpr int kTokens = 4000;
  for (const test::Tiling& pattern : kPatterns) {
    CAPTURE(layout_name(pattern.layout, pattern.n));
    const Experts experts(pool, pattern, 1, kRows, kCols);
    const std::vector<uint16_t> bits =
        test::split_parts(floats(static_cast<size_t>(kTokens) * kCols), kTokens, kCols, 1);
    const std::vector<double> seen = test::join_parts(bits, kTokens, kCols, 1);
    const OnGpu<uint16_t> x(bits);
    const OnGpu<float> y(static_cast<size_t>(kTokens) * kRows);
    Product product;
    product.weights = experts.view();
    product.tokens = kTokens;
    product.x = x.get();
    product.y = y.get();
    product.output = OutputType::kF32;
    require(launch_wide_product(product, nullptr));
    const std::vector<float> all = y.host();
    std::vector<float> found;
    std::vector<double> wanted;
    for (int token = 0; token < kTokens; ++token) {
      for (int row = token % 89; row < kRows; row += 89) {
        found.push_back(all[static_cast<size_t>(token) * kRows + static_cast<size_t>(row)]);
        wanted.push_back(experts.product(0, row, seen.data() + static_cast<ptrdiff_t>(token) * kCols));
      }
    }
    CHECK(std::none_of(all.begin(), all.end(), [](float value) { return std::isnan(value); }));
    CHECK(test::relative_error(found, wanted) < 1e-5);
  }
}

TEST_CASE("gated products of many tokens, of rows gathered by expert") {
  if (!has_products()) return;
  ThreadPool pool(4);
  for (const test::Tiling& pattern : kPatterns) {
    for (const int parts : {1, 2}) {
      constexpr int kWidth = 96;
      constexpr int kCols = 224;
      constexpr int kTokens = 45;
      constexpr int kInputs = 60;
      constexpr int kGroups = 3;
      CAPTURE(layout_name(pattern.layout, pattern.n));
      CAPTURE(parts);
      const Experts experts(pool, pattern, 2, 2 * kWidth, kCols);
      const std::vector<uint16_t> bits =
          test::split_parts(floats(static_cast<size_t>(kInputs) * kCols, 1 / std::sqrt(static_cast<float>(kCols))),
                            kInputs, kCols, parts);
      const std::vector<double> seen = test::join_parts(bits, kInputs, kCols, parts);
      const std::vector<int32_t> chosen = {1, 0, -1};
      std::vector<int32_t> inputs(static_cast<size_t>(kGroups) * kTokens);
      for (int32_t& input : inputs) input = draw(-1, kInputs - 1);
      const OnGpu<uint16_t> x(bits);
      const OnGpu<uint16_t> gathered(inputs.size() * static_cast<size_t>(parts) * kCols);
      const OnGpu<int32_t> inputs_gpu(inputs);
      const OnGpu<int32_t> chosen_gpu(chosen);
      require(gather_rows({.slots = static_cast<int>(inputs.size()),
                           .inputs = inputs_gpu.get(),
                           .from = {x.get(), parts, kCols},
                           .to = {gathered.get(), parts, kCols}},
                          nullptr));
      const OnGpu<uint16_t> y(inputs.size() * static_cast<size_t>(parts) * kWidth);
      Product product;
      product.weights = experts.view();
      product.groups = kGroups;
      product.tokens = kTokens;
      product.parts = parts;
      product.x = gathered.get();
      product.experts = chosen_gpu.get();
      product.y = y.get();
      product.output = OutputType::kGated;
      require(launch_wide_product(product, nullptr));
      const std::vector<double> all = test::join_parts(y.host(), static_cast<int64_t>(inputs.size()), kWidth, parts);
      std::vector<double> found;
      std::vector<double> wanted;
      for (size_t slot = 0; slot < inputs.size(); ++slot) {
        const int expert = chosen[slot / kTokens];
        if (expert < 0 || inputs[slot] < 0) continue;
        const double* input = seen.data() + static_cast<ptrdiff_t>(inputs[slot]) * kCols;
        for (int r = 0; r < kWidth; ++r) {
          const int gate = r / 8 * 16 + r % 8;
          found.push_back(all[slot * kWidth + static_cast<size_t>(r)]);
          wanted.push_back(silu(experts.product(expert, gate, input)) * experts.product(expert, gate + 8, input));
        }
      }
      CHECK(test::relative_error(found, wanted) < std::max(test::parts_error(parts), 2 * limit(pattern)));
    }
  }
}

TEST_CASE("products of many tokens through cuBLASLt") {
  if (!test::has_gpu()) return;
  Result<DenseProducts> whole = DenseProducts::create();
  if (!whole.is_ok()) {
    MESSAGE("skipped: " << whole.status().message());
    return;
  }
  // Room for 272 rows of the widest, so that most matrices go in bands.
  Result<DenseProducts> narrow = DenseProducts::create(int64_t{272} * 1152 * 2);
  require(narrow.status());
  ThreadPool pool(4);
  struct Case {
    int rows, cols, tokens, parts;
    OutputType output;
  };
  const Case cases[] = {{64, 192, 19, 1, OutputType::kF32},    {33, 1056, 32, 2, OutputType::kF32},
                        {416, 64, 50, 1, OutputType::kBf16},   {1000, 1120, 130, 2, OutputType::kF32},
                        {1031, 1056, 65, 1, OutputType::kF32}, {784, 608, 300, 1, OutputType::kBf16},
                        {144, 192, 1100, 1, OutputType::kF32}};
  for (const test::Tiling& pattern : kPatterns) {
    for (const Case& of : cases) {
      for (DenseProducts* dense : {&whole.value(), &narrow.value()}) {
        CAPTURE(layout_name(pattern.layout, pattern.n));
        CAPTURE(of.rows);
        CAPTURE(of.tokens);
        CAPTURE(of.parts);
        const Experts experts(pool, pattern, 1, of.rows, of.cols);
        const std::vector<uint16_t> bits = test::split_parts(
            floats(static_cast<size_t>(of.tokens) * static_cast<size_t>(of.cols)), of.tokens, of.cols, of.parts);
        const std::vector<double> seen = test::join_parts(bits, of.tokens, of.cols, of.parts);
        const OnGpu<uint16_t> x(bits);
        const size_t outputs = static_cast<size_t>(of.tokens) * static_cast<size_t>(of.rows);
        const OnGpu<float> floats_out(outputs);
        const OnGpu<uint16_t> bits_out(outputs);
        Product product;
        product.weights = experts.view();
        product.tokens = of.tokens;
        product.parts = of.parts;
        product.x = x.get();
        product.output = of.output;
        product.y = of.output == OutputType::kF32 ? static_cast<void*>(floats_out.get()) : bits_out.get();
        if (pattern.layout != cuda::TileLayout::kBalanced && pattern.layout != cuda::TileLayout::kBitmap) {
          CHECK(dense->launch(product, nullptr).code() == Code::kUsage);
          continue;
        }
        REQUIRE(DenseProducts::takes(product));
        require(dense->launch(product, nullptr));
        std::vector<float> found = floats_out.host();
        if (of.output == OutputType::kBf16) {
          const std::vector<uint16_t> all = bits_out.host();
          std::transform(all.begin(), all.end(), found.begin(), bf16_to_float);
        }
        std::vector<double> wanted;
        for (int token = 0; token < of.tokens; ++token) {
          for (int r = 0; r < of.rows; ++r) {
            wanted.push_back(experts.product(0, r, seen.data() + static_cast<ptrdiff_t>(token) * of.cols));
          }
        }
        CHECK(test::relative_error(found, wanted) < (of.output == OutputType::kF32 ? 1e-5 : 3e-3));
      }
    }
  }
}

TEST_CASE("products of many tokens whose weights are expanded on the way") {
  if (!has_products()) return;
  ThreadPool pool(4);
  struct Case {
    int rows, cols, tokens, parts;
    OutputType output;
  };
  const Case cases[] = {{64, 192, 19, 1, OutputType::kF32},     {33, 1056, 32, 2, OutputType::kF32},
                        {413, 64, 300, 1, OutputType::kBf16},   {1000, 1120, 600, 2, OutputType::kF32},
                        {1031, 2080, 265, 1, OutputType::kF32}, {320, 608, 300, 2, OutputType::kGated},
                        {1140, 2080, 4000, 1, OutputType::kF32}};
  constexpr int64_t kTiles = 2000;
  // The same for all: a launch leaves it ready for the next one.
  const OnGpu<uint8_t> room(kTiles * 4096);
  const OnGpu<uint32_t> progress(std::vector<uint32_t>(static_cast<size_t>(expansion_words(kTiles))));
  for (const test::Tiling& pattern : kPatterns) {
    for (const Case& of : cases) {
      CAPTURE(layout_name(pattern.layout, pattern.n));
      CAPTURE(of.rows);
      CAPTURE(of.tokens);
      CAPTURE(of.parts);
      const Experts experts(pool, pattern, 1, of.rows, of.cols);
      const std::vector<uint16_t> bits =
          test::split_parts(floats(static_cast<size_t>(of.tokens) * static_cast<size_t>(of.cols),
                                   1 / std::sqrt(static_cast<float>(of.cols))),
                            of.tokens, of.cols, of.parts);
      const std::vector<double> seen = test::join_parts(bits, of.tokens, of.cols, of.parts);
      const OnGpu<uint16_t> x(bits);
      const bool gated = of.output == OutputType::kGated;
      const int width = gated ? of.rows / 2 : of.rows;
      const size_t outputs = static_cast<size_t>(of.tokens) * static_cast<size_t>(width);
      const OnGpu<float> floats_out(outputs);
      const OnGpu<uint16_t> bits_out(outputs * static_cast<size_t>(gated ? of.parts : 1));
      Product product;
      product.weights = experts.view();
      product.tokens = of.tokens;
      product.parts = of.parts;
      product.x = x.get();
      product.output = of.output;
      product.y = of.output == OutputType::kF32 ? static_cast<void*>(floats_out.get()) : bits_out.get();
      ExpansionRoom place{room.get(), progress.get(), kTiles};
      if (pattern.layout != cuda::TileLayout::kBalanced && pattern.layout != cuda::TileLayout::kBitmap) {
        CHECK(!takes_expanded(product));
        CHECK(launch_expanded_product(product, place, nullptr).code() == Code::kUsage);
        continue;
      }
      place.tiles = expansion_tiles(product.weights) - 1;
      CHECK(launch_expanded_product(product, place, nullptr).code() == Code::kUsage);
      place.tiles = kTiles;
      // The second launch must not take the tiles of the first for its own.
      for (int launch = 0; launch < 2; ++launch) {
        room.poison();
        floats_out.poison();
        bits_out.poison();
        require(launch_expanded_product(product, place, nullptr));
        std::vector<double> all;
        if (of.output == OutputType::kF32) {
          for (const float value : floats_out.host()) all.push_back(static_cast<double>(value));
        } else if (gated) {
          all = test::join_parts(bits_out.host(), of.tokens, width, of.parts);
        } else {
          for (const uint16_t value : bits_out.host()) all.push_back(static_cast<double>(bf16_to_float(value)));
        }
        CHECK(std::none_of(all.begin(), all.end(), [](double value) { return std::isnan(value); }));
        std::vector<double> found;
        std::vector<double> wanted;
        for (int token = 0; token < of.tokens; ++token) {
          const double* input = seen.data() + static_cast<ptrdiff_t>(token) * of.cols;
          for (int row = token % 29; row < width; row += 29) {
            found.push_back(all[static_cast<size_t>(token) * static_cast<size_t>(width) + static_cast<size_t>(row)]);
            const int gate = row / 8 * 16 + row % 8;
            wanted.push_back(gated ? silu(experts.product(0, gate, input)) * experts.product(0, gate + 8, input)
                                   : experts.product(0, row, input));
          }
        }
        CHECK(test::relative_error(found, wanted) < (of.output == OutputType::kF32    ? 1e-5
                                                     : of.output == OutputType::kBf16 ? 3e-3
                                                                                      : test::parts_error(of.parts)));
      }
    }
  }
}

TEST_CASE("how many tokens of an expert go through a product together") {
  CHECK(expected_groups(2, 1) == doctest::Approx(2));
  // 1 − e⁻³, and P(X > 8) of a mean of 3 once more.
  CHECK(expected_groups(3, 8) == doctest::Approx(0.95021 + 0.00380).epsilon(1e-4));
  CHECK(expected_groups(1000, 250) == doctest::Approx(4.5));
  for (const test::Tiling& pattern : kPatterns) {
    for (const int parts : {1, 2}) {
      CAPTURE(layout_name(pattern.layout, pattern.n));
      CAPTURE(parts);
      const auto plan = [&](double average, int rows, bool has_wide = true) {
        return plan_groups(pattern.layout, average, rows, parts, has_wide);
      };
      CHECK(plan(0.5, 4).tokens == std::min(4, kMostFewRows / 2 / parts));
      CHECK(!plan(0.5, 4).wide);
      CHECK(plan(20, 80).wide);
      CHECK(plan(20, 80).tokens >= 32);
      CHECK(plan(2000, 8000).tokens == 256);
      const GroupPlan few = plan(2000, 8000, false);
      CHECK(!few.wide);
      CHECK(few.tokens * parts <= kMostFewRows);
    }
  }
}

TEST_CASE("what cuBLASLt is asked for") {
  const int32_t list = 0;
  Product product;
  product.weights.layout = cuda::TileLayout::kBitmap;
  product.weights.count = 1;
  product.tokens = 4096;
  product.output = OutputType::kF32;
  CHECK(DenseProducts::is_faster(product));
  const auto refuses = [&](const auto& change) {
    Product other = product;
    change(other);
    return !DenseProducts::takes(other) && !DenseProducts::is_faster(other);
  };
  CHECK(refuses([](Product& p) { p.weights.layout = cuda::TileLayout::kDense; }));
  CHECK(refuses([](Product& p) { p.weights.layout = cuda::TileLayout::kTwoFour; }));
  CHECK(refuses([](Product& p) { p.weights.count = 2; }));
  CHECK(refuses([](Product& p) { p.groups = 2; }));
  CHECK(refuses([&](Product& p) { p.experts = &list; }));
  CHECK(refuses([&](Product& p) { p.inputs = &list; }));
  CHECK(refuses([](Product& p) { p.output = OutputType::kGated; }));
  CHECK(refuses([](Product& p) {
    p.output = OutputType::kBf16;
    p.parts = 2;
  }));
  product.tokens = 500;
  product.parts = 2;
  CHECK(DenseProducts::takes(product));
  CHECK(!DenseProducts::is_faster(product));
}

TEST_CASE("products of many tokens that no kernel takes") {
  if (!has_products()) return;
  ThreadPool pool(1);
  const Experts experts(pool, kPatterns[0], 1, 64, 64);
  const OnGpu<uint16_t> x(size_t{64} * 64);
  const OnGpu<int32_t> inputs(size_t{64});
  Product product;
  product.weights = experts.view();
  product.tokens = 40;
  product.x = x.get();
  product.inputs = inputs.get();
  CHECK(launch_wide_product(product, nullptr).code() == Code::kUsage);
  product.inputs = nullptr;
  product.parts = 3;
  CHECK(launch_wide_product(product, nullptr).code() == Code::kUsage);
}
