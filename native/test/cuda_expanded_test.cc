// Products of many tokens whose weights are expanded once, against float64 on the host.
#include <algorithm>

#include "kernels/cuda/dense_products.h"
#include "wide_products.h"

using namespace espalier;
using namespace espalier::cuda;
using test::Experts;
using test::floats;
using test::OnGpu;
using test::require;
using test::silu;

namespace {

const std::vector<test::Tiling> kPatterns = test::all_tilings(0.4);

struct Case {
  int rows, cols, tokens, parts;
  OutputType output;
};

// A product by one random matrix, and what it should give.
struct Multiplication {
  Case of;
  int width;  // of a row of y
  Experts experts;
  std::vector<uint16_t> bits;
  std::vector<double> seen;
  OnGpu<uint16_t> x;
  OnGpu<float> floats_out;
  OnGpu<uint16_t> bits_out;

  Multiplication(ThreadPool& pool, const test::Tiling& pattern, const Case& one)
      : of(one),
        width(is_gated() ? of.rows / 2 : of.rows),
        experts(pool, pattern, 1, of.rows, of.cols),
        bits(test::split_parts(floats(static_cast<size_t>(of.tokens) * static_cast<size_t>(of.cols),
                                      1 / std::sqrt(static_cast<float>(of.cols))),
                               of.tokens, of.cols, of.parts)),
        seen(test::join_parts(bits, of.tokens, of.cols, of.parts)),
        x(bits),
        floats_out(static_cast<size_t>(of.tokens) * static_cast<size_t>(width)),
        bits_out(static_cast<size_t>(of.tokens) * static_cast<size_t>(width * (is_gated() ? of.parts : 1))) {}

  bool is_gated() const { return of.output == OutputType::kGated; }
  Product product() const {
    Product product;
    product.weights = experts.view();
    product.tokens = of.tokens;
    product.parts = of.parts;
    product.x = x.get();
    product.output = of.output;
    product.y = of.output == OutputType::kF32 ? static_cast<void*>(floats_out.get()) : bits_out.get();
    return product;
  }
  void poison() const {
    floats_out.poison();
    bits_out.poison();
  }
  // Checks every `step`-th row of a token, from another one on for each.
  void check(int step) const { check(step, width); }
  // That only the first rows of y were computed.
  void check(int step, int rows) const {
    std::vector<double> all;
    if (of.output == OutputType::kF32) {
      for (const float value : floats_out.host()) all.push_back(static_cast<double>(value));
    } else if (is_gated()) {
      all = test::join_parts(bits_out.host(), of.tokens, width, of.parts);
    } else {
      for (const uint16_t value : bits_out.host()) all.push_back(static_cast<double>(bf16_to_float(value)));
    }
    bool as_far = true;
    for (size_t i = 0; i < all.size(); ++i) {
      as_far = as_far && std::isnan(all[i]) == (static_cast<int>(i) % width >= rows);
    }
    CHECK(as_far);
    std::vector<double> found;
    std::vector<double> wanted;
    for (int token = 0; token < of.tokens; ++token) {
      const double* input = seen.data() + static_cast<ptrdiff_t>(token) * of.cols;
      for (int row = token % step; row < rows; row += step) {
        found.push_back(all[static_cast<size_t>(token) * static_cast<size_t>(width) + static_cast<size_t>(row)]);
        const int gate = row / 8 * 16 + row % 8;
        wanted.push_back(is_gated() ? silu(experts.product(0, gate, input)) * experts.product(0, gate + 8, input)
                                    : experts.product(0, row, input));
      }
    }
    CHECK(test::relative_error(found, wanted) < (of.output == OutputType::kF32    ? 1e-5
                                                 : of.output == OutputType::kBf16 ? 3e-3
                                                                                  : test::parts_error(of.parts)));
  }
};

// Whether the rows of whole tiles at `matrix` are the expert's.
bool holds(const std::vector<uint16_t>& matrix, const Experts& experts) {
  const int cols = experts.host.cols;
  const int stride = (cols + 127) / 128 * 128;
  for (int row = 0; row < experts.host.rows; ++row) {
    for (int col = 0; col < stride; ++col) {
      const float wanted =
          col < cols
              ? experts.matrices[0][static_cast<size_t>(row) * static_cast<size_t>(cols) + static_cast<size_t>(col)]
              : 0.0F;
      if (bf16_to_float(matrix[static_cast<size_t>(row) * static_cast<size_t>(stride) + static_cast<size_t>(col)]) !=
          wanted) {
        return false;
      }
    }
  }
  return true;
}

bool is_expanded(const test::Tiling& pattern) {
  return pattern.layout == TileLayout::kBalanced || pattern.layout == TileLayout::kBitmap;
}

}  // namespace

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
  const Case cases[] = {{64, 192, 19, 1, OutputType::kF32},    {33, 1056, 32, 2, OutputType::kF32},
                        {416, 64, 50, 1, OutputType::kBf16},   {1000, 1120, 130, 2, OutputType::kF32},
                        {1031, 1056, 65, 1, OutputType::kF32}, {784, 608, 300, 1, OutputType::kBf16},
                        {144, 192, 1100, 1, OutputType::kF32}, {1930, 192, 2100, 1, OutputType::kBf16},
                        {3500, 160, 1100, 2, OutputType::kF32}};
  for (const test::Tiling& pattern : kPatterns) {
    for (const Case& of : cases) {
      for (DenseProducts* dense : {&whole.value(), &narrow.value()}) {
        CAPTURE(layout_name(pattern.layout, pattern.n));
        CAPTURE(of.rows);
        CAPTURE(of.tokens);
        CAPTURE(of.parts);
        const Multiplication multiplication(pool, pattern, of);
        const Product product = multiplication.product();
        if (!is_expanded(pattern)) {
          CHECK(dense->launch(product, nullptr).code() == Code::kUsage);
          continue;
        }
        REQUIRE(DenseProducts::takes(product));
        require(dense->launch(product, nullptr));
        multiplication.check(of.rows > 1500 ? 29 : 1);
      }
    }
  }
}

TEST_CASE("products of many tokens whose weights are expanded on the way") {
  if (!test::has_wide_products()) return;
  ThreadPool pool(4);
  const Case cases[] = {{64, 192, 19, 1, OutputType::kF32},     {33, 1056, 32, 2, OutputType::kF32},
                        {413, 64, 300, 1, OutputType::kBf16},   {1000, 1120, 600, 2, OutputType::kF32},
                        {1031, 2080, 265, 1, OutputType::kF32}, {320, 608, 300, 2, OutputType::kGated},
                        {1140, 2080, 4000, 1, OutputType::kF32}};
  constexpr int64_t kTiles = 2000;
  // The same for all: a launch leaves it ready for the next one.
  const OnGpu<uint16_t> room(kTiles * 2048);
  const OnGpu<uint32_t> progress(std::vector<uint32_t>(static_cast<size_t>(expansion_words(kTiles))));
  for (const test::Tiling& pattern : test::some_of(kPatterns, 2)) {
    for (const Case& of : test::some_of(cases, 2)) {
      CAPTURE(layout_name(pattern.layout, pattern.n));
      CAPTURE(of.rows);
      CAPTURE(of.tokens);
      CAPTURE(of.parts);
      const Multiplication multiplication(pool, pattern, of);
      const Product product = multiplication.product();
      ExpansionRoom place{room.get(), progress.get(), kTiles};
      if (!is_expanded(pattern)) {
        CHECK(!takes_expanded(product));
        CHECK(launch_expanded_product(product, of.rows, place, nullptr).code() == Code::kUsage);
        continue;
      }
      place.tiles = expansion_tiles(product.weights) - 1;
      CHECK(launch_expanded_product(product, of.rows, place, nullptr).code() == Code::kUsage);
      place.tiles = kTiles;
      // The second launch must not take the tiles of the first for its own.
      for (int launch = 0; launch < 2; ++launch) {
        room.poison();
        multiplication.poison();
        require(launch_expanded_product(product, of.rows, place, nullptr));
        multiplication.check(29);
      }
      CHECK(launch_expanded_product(product, of.rows + 128, place, nullptr).code() == Code::kUsage);
      if (of.rows <= 128) continue;
      CHECK(launch_expanded_product(product, 64, place, nullptr).code() == Code::kUsage);
      room.poison();
      multiplication.poison();
      require(launch_expanded_product(product, 128, place, nullptr));
      multiplication.check(29, multiplication.is_gated() ? 64 : 128);
      CHECK(holds(room.host(), multiplication.experts));
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
