// Products of many tokens on a GPU, against float64 on the host.
#include <algorithm>

#include "engine/cuda/group_size.h"
#include "kernels/cuda/routing.h"
#include "wide_products.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::Experts;
using test::floats;
using test::limit;
using test::OnGpu;
using test::require;
using test::silu;

namespace {

const std::vector<test::Tiling> kPatterns = test::all_tilings(0.4);

std::vector<uint16_t> bf16_of(const std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(), float_to_bf16);
  return bits;
}

// A product of many tokens by one expert, in float32.
Product product_of(const Experts& experts, int tokens, int parts, const OnGpu<uint16_t>& x, const OnGpu<float>& y) {
  Product product;
  product.weights = experts.view();
  product.tokens = tokens;
  product.parts = parts;
  product.x = x.get();
  product.y = y.get();
  product.output = OutputType::kF32;
  return product;
}

// All of what it should give for the rows of x that were seen.
std::vector<double> product_by(const Experts& experts, const std::vector<double>& seen) {
  const size_t cols = static_cast<size_t>(experts.host.cols);
  std::vector<double> wanted;
  for (size_t token = 0; token < seen.size() / cols; ++token) {
    for (int row = 0; row < experts.host.rows; ++row) {
      wanted.push_back(experts.product(0, row, seen.data() + token * cols));
    }
  }
  return wanted;
}

}  // namespace

TEST_CASE("products of many tokens by experts") {
  if (!test::has_wide_products()) return;
  ThreadPool pool(4);
  struct Case {
    int rows, cols, tokens, parts;
    WideTuning tuning;
  };
  const Case cases[] = {{64, 192, 19, 1, {}},       {33, 1056, 32, 2, {1, 2}},  {416, 64, 50, 1, {1, 2}},
                        {150, 608, 64, 2, {2, 0}},  {272, 352, 100, 1, {}},     {192, 416, 128, 2, {1, 1}},
                        {96, 1120, 300, 1, {1, 2}}, {416, 640, 200, 1, {1, 1}}, {120, 544, 131, 2, {4, 0}},
                        {600, 320, 270, 1, {1, 4}}};
  constexpr int kExperts = 3;
  constexpr int kGroups = 4;
  for (const test::Tiling& pattern : test::some_of(kPatterns, 2)) {
    for (const Case& of : test::some_of(cases, 3)) {
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

TEST_CASE("bitmaps with any share of zeros, whose tiles leave rings of other sizes") {
  if (!test::has_wide_products()) return;
  ThreadPool pool(4);
  constexpr int kRows = 136;
  constexpr int kCols = 1056;
  for (const int percent : test::some_of({2, 20, 36, 44, 46, 50, 52, 54, 60, 90}, 4)) {
    const test::Tiling pattern{TileLayout::kBitmap, 0, {Storage::kBitmap, Values::kBf16}, 1 - 0.01 * percent};
    const Experts experts(pool, pattern, 1, kRows, kCols);
    for (const int parts : {1, 2}) {
      for (const int tokens : test::some_of({20, 40, 70, 140}, 2)) {
        CAPTURE(percent);
        CAPTURE(parts);
        CAPTURE(tokens);
        const std::vector<uint16_t> bits =
            test::split_parts(floats(static_cast<size_t>(tokens) * kCols), tokens, kCols, parts);
        const std::vector<double> seen = test::join_parts(bits, tokens, kCols, parts);
        const OnGpu<uint16_t> x(bits);
        const OnGpu<float> y(static_cast<size_t>(tokens) * kRows);
        require(launch_wide_product(product_of(experts, tokens, parts, x, y), nullptr));
        CHECK(test::relative_error(y.host(), product_by(experts, seen)) < 1e-5);
      }
    }
  }
}

TEST_CASE("blocks split the inputs of a row block") {
  if (!test::has_wide_products()) return;
  ThreadPool pool(4);
  constexpr int kRows = 144;
  constexpr int kCols = 1056;
  for (const test::Tiling& pattern : test::some_of(kPatterns, 1)) {
    const Experts experts(pool, pattern, 1, kRows, kCols);
    for (const int tokens : {20, 50, 100, 200}) {
      const std::vector<uint16_t> bits =
          test::split_parts(floats(static_cast<size_t>(tokens) * kCols), tokens, kCols, 1);
      const std::vector<double> seen = test::join_parts(bits, tokens, kCols, 1);
      const OnGpu<uint16_t> x(bits);
      const std::vector<double> wanted = product_by(experts, seen);
      for (const int split : test::some_of({2, 3, 4, 5, 6, 7, 8}, 2)) {
        CAPTURE(layout_name(pattern.layout, pattern.n));
        CAPTURE(tokens);
        CAPTURE(split);
        const OnGpu<float> y(static_cast<size_t>(tokens) * kRows);
        require(launch_wide_product(product_of(experts, tokens, 1, x, y), nullptr, {.split = split}));
        CHECK(test::relative_error(y.host(), wanted) < limit(pattern));
      }
    }
  }
}

TEST_CASE("a product of several rounds, of which mates split the last items") {
  if (!test::has_wide_products()) return;
  ThreadPool pool(4);
  // On 132 multiprocessors two rounds, and 64 items that are split; more rounds on smaller devices.
  constexpr int kRows = 2504;
  constexpr int kCols = 2080;
  const int kTokens = test::is_emulated() ? 500 : 4000;
  for (const test::Tiling& pattern : test::some_of(kPatterns, 1)) {
    CAPTURE(layout_name(pattern.layout, pattern.n));
    const Experts experts(pool, pattern, 1, kRows, kCols);
    const std::vector<uint16_t> bits =
        test::split_parts(floats(static_cast<size_t>(kTokens) * kCols), kTokens, kCols, 1);
    const std::vector<double> seen = test::join_parts(bits, kTokens, kCols, 1);
    const OnGpu<uint16_t> x(bits);
    const OnGpu<float> y(static_cast<size_t>(kTokens) * kRows);
    Product product = product_of(experts, kTokens, 1, x, y);
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

    const OnGpu<uint16_t> rounded(static_cast<size_t>(kTokens) * kRows);
    product.y = rounded.get();
    product.output = OutputType::kBf16;
    require(launch_wide_product(product, nullptr));
    CHECK(rounded.host() == bf16_of(all));
  }
}

TEST_CASE("gated products of many tokens, of rows gathered by expert") {
  if (!test::has_wide_products()) return;
  ThreadPool pool(4);
  struct Case {
    int tokens, parts;
  };
  for (const test::Tiling& pattern : kPatterns) {
    for (const auto& [tokens, parts] : {Case{45, 1}, Case{45, 2}, Case{300, 1}, Case{300, 2}}) {
      constexpr int kWidth = 96;
      constexpr int kCols = 224;
      constexpr int kInputs = 60;
      constexpr int kGroups = 3;
      CAPTURE(layout_name(pattern.layout, pattern.n));
      CAPTURE(tokens);
      CAPTURE(parts);
      const Experts experts(pool, pattern, 2, 2 * kWidth, kCols);
      const std::vector<uint16_t> bits =
          test::split_parts(floats(static_cast<size_t>(kInputs) * kCols, 1 / std::sqrt(static_cast<float>(kCols))),
                            kInputs, kCols, parts);
      const std::vector<double> seen = test::join_parts(bits, kInputs, kCols, parts);
      const std::vector<int32_t> chosen = {1, 0, -1};
      std::vector<int32_t> inputs(static_cast<size_t>(kGroups * tokens));
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
      product.tokens = tokens;
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
        const int expert = chosen[slot / static_cast<size_t>(tokens)];
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

TEST_CASE("products of many tokens that no kernel takes") {
  if (!test::has_wide_products()) return;
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
