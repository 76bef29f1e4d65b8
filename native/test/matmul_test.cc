#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "kernel_sets.h"
#include "packing.h"
#include "test_main.h"

using namespace espalier;

namespace {

// Inputs as the engine hands them over: with the int8 copy, and a spare zero behind.
struct Inputs {
  int64_t tokens;
  int64_t cols;
  std::vector<float> x;
  std::vector<int8_t> q;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  QuantisedRows rows;

  Inputs(std::mt19937& random, const CpuKernels& kernels, int64_t count, int64_t width)
      : tokens(count), cols(width), x(test::normal_floats(random, static_cast<size_t>(count * width))) {
    const int64_t groups = (width + kGroup - 1) / kGroup;
    const int64_t readable = (count + kTileTokens - 1) / kTileTokens * kTileTokens;
    q.resize(static_cast<size_t>(readable * groups * kGroup));
    scales.resize(static_cast<size_t>(readable * groups));
    sums.resize(scales.size());
    for (int64_t t = 0; t < count; ++t) {
      kernels.quantise_row(x.data() + t * width, width, q.data() + t * groups * kGroup, scales.data() + t * groups,
                           sums.data() + t * groups);
    }
    x.resize(x.size() + 64, 0.0f);
    rows = {q.data(), scales.data(), sums.data(), groups};
  }

  // What the product sees of x[t][k].
  double seen(int64_t t, int64_t k, bool quantised) const {
    if (!quantised) return static_cast<double>(x[static_cast<size_t>(t * cols + k)]);
    return static_cast<double>(q[static_cast<size_t>(t * rows.groups * kGroup + k)]) *
           static_cast<double>(scales[static_cast<size_t>(t * rows.groups + k / kGroup)]);
  }
};

std::vector<float> multiply(const CpuKernels& kernels, const PackedMatrix& weights, const Inputs& in,
                            const uint16_t* tiles = nullptr) {
  std::vector<float> y(static_cast<size_t>(in.tokens * weights.rows()), std::nanf(""));
  kernels.matmul(weights.format())({.weights = weights,
                                    .tile_begin = 0,
                                    .tile_end = weights.tile_rows(),
                                    .x = in.x.data(),
                                    .x_stride = in.cols,
                                    .tiles = tiles,
                                    .quantised = &in.rows,
                                    .tokens = in.tokens,
                                    .y = y.data(),
                                    .y_stride = weights.rows()});
  return y;
}

std::vector<Format> formats_for(const CpuKernels& kernels, int64_t cols) {
  std::vector<Format> result;
  for (const Values values : {Values::kBf16, Values::kF32, Values::kInt8, Values::kInt4}) {
    for (const Format format :
         {Format{Storage::kDense, values}, Format{Storage::kBitmap, values}, Format{Storage::kNm, values, 2, 4},
          Format{Storage::kNm, values, 8, 16}, Format{Storage::kNm, values, 32, 64}}) {
      if (format_exists(format, cols) && kernels.takes(format)) result.push_back(format);
    }
  }
  return result;
}

}  // namespace

TEST_CASE(
    "the dispatch table has no hole: dense everywhere, and what of the sparse formats an instruction set gains from") {
  for (const CpuKernels* kernels : test::kernel_sets()) {
    CAPTURE(isa_name(kernels->isa));
    for (int s = 0; s < 3; ++s) {
      for (int v = 0; v < 4; ++v) {
        const Format format{static_cast<Storage>(s), static_cast<Values>(v), 2, 4};
        CAPTURE(format.name());
        const bool is_dense = format.storage == Storage::kDense;
        const bool gains =
            kernels->isa >= Isa::kAvx512 || (kernels->isa != Isa::kScalar && format.values == Values::kBf16);
        CHECK(kernels->takes(format) == (is_dense || (gains && format_exists(format, 64))));
      }
    }
  }
}

TEST_CASE("every product agrees with float64 on every instruction set") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const auto& shape :
         {std::pair<int64_t, int64_t>{16, 64}, {33, 288}, {200, 96}, {7, 1024}, {20, 130}, {18, 320}}) {
      const int64_t rows = shape.first;
      const int64_t cols = shape.second;
      for (const Format& format : formats_for(*kernels, cols)) {
        for (const int64_t tokens : {1, 2, 3, 8, 9, 31}) {
          CAPTURE(isa_name(kernels->isa));
          CAPTURE(format.name());
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(tokens);
          const PackedMatrix packed = test::pack(test::sparse_weights(random, rows, cols, format), rows, cols, format);
          const Inputs in(random, *kernels, tokens, cols);
          const std::vector<float> y = multiply(*kernels, packed, in);
          // What is stored, not what was given: rounding is tested with the formats.
          ThreadPool pool(1);
          std::vector<float> weights(static_cast<size_t>(rows * cols));
          packed.unpack(pool, weights.data());
          double worst = 0;
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t r = 0; r < rows; ++r) {
              double exact = 0;
              double magnitude = 1e-30;
              for (int64_t k = 0; k < cols; ++k) {
                const double term = static_cast<double>(weights[static_cast<size_t>(r * cols + k)]) *
                                    in.seen(t, k, is_quantised(format.values));
                exact += term;
                magnitude += std::abs(term);
              }
              worst = std::max(worst,
                               std::abs(static_cast<double>(y[static_cast<size_t>(t * rows + r)]) - exact) / magnitude);
            }
          }
          // A chain of at most `cols` float32 operations: |error| ≤ (cols + 4) · 2⁻²⁴ · Σ|terms|, in practice far less.
          CHECK(worst <= static_cast<double>(cols + 4) * std::pow(2.0, -24));
        }
      }
    }
  }
}

TEST_CASE("quantised inputs are within half a step, with the sums they say") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    const Inputs in(random, *kernels, 7, 200);
    for (int64_t t = 0; t < in.tokens; ++t) {
      for (int64_t g = 0; g < in.rows.groups; ++g) {
        double largest = 0;
        int32_t sum = 0;
        for (int64_t k = g * kGroup; k < std::min<int64_t>(in.cols, (g + 1) * kGroup); ++k) {
          largest = std::max(largest, std::abs(in.seen(t, k, false)));
          sum += in.q[static_cast<size_t>(t * in.rows.groups * kGroup + k)];
        }
        CHECK(in.sums[static_cast<size_t>(t * in.rows.groups + g)] == sum);
        for (int64_t k = g * kGroup; k < std::min<int64_t>(in.cols, (g + 1) * kGroup); ++k) {
          CHECK(std::abs(in.seen(t, k, true) - in.seen(t, k, false)) <= largest / 254 * 1.0001);
        }
      }
    }
  }
}

TEST_CASE("sparse products give the bits of the dense product with zeros in place") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const Values values : {Values::kBf16, Values::kInt8, Values::kInt4}) {
      for (const int64_t tokens : {1, 5, 40}) {
        const Inputs in(random, *kernels, tokens, 192);
        const std::vector<float> weights = test::sparse_weights(random, 50, 192, {Storage::kNm, values, 2, 4});
        const std::vector<float> dense =
            multiply(*kernels, test::pack(weights, 50, 192, {Storage::kDense, values}), in);
        for (const Format format : {Format{Storage::kBitmap, values}, Format{Storage::kNm, values, 2, 4},
                                    Format{Storage::kNm, values, 32, 64}}) {
          if (kernels->takes(format)) CHECK(multiply(*kernels, test::pack(weights, 50, 192, format), in) == dense);
        }
      }
    }
  }
}

TEST_CASE("a token's product does not depend on the other tokens of the call") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const Format& format : formats_for(*kernels, 352)) {
      const PackedMatrix packed = test::pack(test::sparse_weights(random, 40, 352, format), 40, 352, format);
      const Inputs in(random, *kernels, 21, 352);
      const std::vector<float> together = multiply(*kernels, packed, in);
      for (int64_t t = 0; t < in.tokens; ++t) {
        std::vector<float> alone(40);
        const QuantisedRows row{in.q.data() + t * in.rows.groups * kGroup, in.scales.data() + t * in.rows.groups,
                                in.sums.data() + t * in.rows.groups, in.rows.groups};
        kernels->matmul(format)(
            {packed, 0, packed.tile_rows(), in.x.data() + t * 352, 352, nullptr, &row, 1, alone.data(), 40});
        CHECK(std::memcmp(alone.data(), together.data() + t * 40, alone.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("tiles of bf16 inputs give the bits of rounded rows, whatever the set, and those of the reference") {
  std::mt19937 random(test::fresh_seed());
  const CpuKernels& reference = *cpu_kernels(Isa::kScalar);
  ThreadPool pool(1);
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const auto& shape :
         {std::pair<int64_t, int64_t>{16, 32}, {33, 288}, {530, 96}, {7, 1024}, {20, 130}, {49, 2500}, {16, 35}}) {
      const int64_t rows = shape.first;
      const int64_t cols = shape.second;
      for (const Format& format : formats_for(*kernels, cols)) {
        if (format.values != Values::kBf16) continue;
        for (const int64_t tokens : {1, 15, 16, 17, 33, 70, 530}) {
          if (tokens * rows * cols > 20'000'000) continue;
          CAPTURE(isa_name(kernels->isa));
          CAPTURE(format.name());
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(tokens);
          const PackedMatrix packed = test::pack(test::sparse_weights(random, rows, cols, format), rows, cols, format);
          Inputs in(random, *kernels, tokens, cols);
          const TileLayout layout = TileLayout::of(tokens, cols);
          std::vector<uint16_t> tiles(static_cast<size_t>(layout.elements()), uint16_t{0x7fc0});
          for (int64_t pair = 0; pair < layout.pairs; ++pair) {
            kernels->fill_tiles(in.x.data(), cols, tokens, cols, pair, tiles.data());
          }
          for (int64_t t = 0; t < tokens; ++t) {
            float* row = in.x.data() + t * cols;
            kernels->round_row(row, cols, row);
            int64_t equal = 0;
            for (int64_t k = 0; k < cols; ++k) {
              const int64_t step = k / 32;
              const int64_t at = layout.offset(step / TileLayout::kTileSteps, t / 32) +
                                 (step % TileLayout::kTileSteps * 2 + t % 32 / 16) * 512 + t % 16 * 32;
              equal += bf16_to_float(tiles[static_cast<size_t>(at + k % 32)]) == row[k];
            }
            REQUIRE(equal == cols);
          }
          const std::vector<float> expected = multiply(reference, packed.to_dense(pool).value(), in);
          CHECK(multiply(*kernels, packed, in) == expected);
          if (kernels->tiled_tokens > 0) CHECK(multiply(*kernels, packed, in, tiles.data()) == expected);
        }
      }
    }
  }
}

TEST_CASE("rounding to bf16 is that of the conversion, for every kind of float") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    std::vector<float> x(4096);
    for (float& value : x) value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    x[0] = std::bit_cast<float>(0x7fffffffu);
    x[1] = std::bit_cast<float>(0xff800001u);
    x[2] = INFINITY;
    std::vector<float> rounded(x.size());
    kernels->round_row(x.data(), static_cast<int64_t>(x.size()), rounded.data());
    for (size_t i = 0; i < x.size(); ++i) {
      if (std::isnan(x[i])) {
        CHECK(std::isnan(rounded[i]));
      } else {
        CHECK(rounded[i] == bf16_to_float(float_to_bf16(x[i])));
      }
    }
  }
}
