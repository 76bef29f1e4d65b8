#include <bit>
#include <cmath>

#include "packing.h"
#include "test_main.h"

using namespace espalier;

namespace {

struct Shape {
  int64_t rows;
  int64_t cols;
};

constexpr Shape kShapes[] = {{16, 64}, {1, 64}, {17, 96}, {48, 288}, {33, 4}, {100, 352}, {5, 130}, {20, 192}};

std::vector<Format> formats_for(int64_t cols) {
  std::vector<Format> result;
  for (const Values values : {Values::kBf16, Values::kF32, Values::kInt8, Values::kInt4}) {
    for (const Format format :
         {Format{Storage::kDense, values}, Format{Storage::kBitmap, values}, Format{Storage::kNm, values, 2, 4},
          Format{Storage::kNm, values, 4, 8}, Format{Storage::kNm, values, 32, 64}}) {
      if (format_exists(format, cols)) result.push_back(format);
    }
  }
  return result;
}

std::vector<float> round_trip(const PackedMatrix& packed) {
  ThreadPool pool(2);
  std::vector<float> out(static_cast<size_t>(packed.rows() * packed.cols()), -1.0f);
  packed.unpack(pool, out.data());
  return out;
}

}  // namespace

TEST_CASE("bf16 and f32 formats give back the values they were given") {
  std::mt19937 random(test::fresh_seed());
  for (const Shape shape : kShapes) {
    for (const Format& format : formats_for(shape.cols)) {
      if (is_quantised(format.values)) continue;
      CAPTURE(format.name());
      CAPTURE(shape.rows);
      CAPTURE(shape.cols);
      const std::vector<float> values = test::sparse_weights(random, shape.rows, shape.cols, format);
      const PackedMatrix packed = test::pack(values, shape.rows, shape.cols, format);
      CHECK(packed.validate().is_ok());
      CHECK(round_trip(packed) == values);
    }
  }
}

TEST_CASE("int8 and int4 formats give back what is within half a step of the values, and zeros exactly") {
  std::mt19937 random(test::fresh_seed());
  for (const Shape shape : kShapes) {
    for (const Format& format : formats_for(shape.cols)) {
      if (!is_quantised(format.values)) continue;
      CAPTURE(format.name());
      CAPTURE(shape.rows);
      CAPTURE(shape.cols);
      const std::vector<float> values = test::sparse_weights(random, shape.rows, shape.cols, format);
      const PackedMatrix packed = test::pack(values, shape.rows, shape.cols, format);
      CHECK(packed.validate().is_ok());
      const std::vector<float> back = round_trip(packed);
      for (int64_t r = 0; r < shape.rows; ++r) {
        for (int64_t first = 0; first < shape.cols; first += kGroup) {
          const int64_t last = std::min(first + kGroup, shape.cols);
          double largest = 0;
          double error = 0;
          double squares = 0;
          for (int64_t k = first; k < last; ++k) {
            const auto at = static_cast<size_t>(r * shape.cols + k);
            const double value = static_cast<double>(values[at]);
            if (values[at] == 0) CHECK(std::bit_cast<uint32_t>(back[at]) == 0);
            largest = std::max(largest, std::abs(value));
            error = std::max(error, std::abs(static_cast<double>(back[at]) - value));
            squares += (static_cast<double>(back[at]) - value) * (static_cast<double>(back[at]) - value);
          }
          if (format.values == Values::kInt8) {
            // Half a step, and the scale's rounding to f16 (below 2⁻¹⁴ one of 2⁻²⁵) over 127 steps.
            CHECK(error <= largest / 127 / 2 + std::max(largest * std::pow(2.0, -11), 127 * std::pow(2.0, -25)) + 1e-7);
          } else {
            // No worse than the plain rule, scale = largest / 7, for which every error is half a step.
            const double step = largest / 7;
            CHECK(squares <=
                  static_cast<double>(last - first) *
                      std::pow(step / 2 + std::max(largest * std::pow(2.0, -11), 7 * std::pow(2.0, -25)) + 1e-7, 2));
          }
        }
      }
    }
  }
}

TEST_CASE("the same weights pack to the same elements whatever their storage") {
  std::mt19937 random(test::fresh_seed());
  const Format two_of_four{Storage::kNm, Values::kInt4, 2, 4};
  const std::vector<float> values = test::sparse_weights(random, 48, 256, two_of_four);
  for (const Values kind : {Values::kBf16, Values::kInt8, Values::kInt4}) {
    const std::vector<float> dense = round_trip(test::pack(values, 48, 256, {Storage::kDense, kind}));
    CHECK(round_trip(test::pack(values, 48, 256, {Storage::kBitmap, kind})) == dense);
    for (const int m : {4, 8, 16, 32, 64}) {
      CHECK(round_trip(test::pack(values, 48, 256, {Storage::kNm, kind, m / 2, m})) == dense);
    }
  }
}

TEST_CASE("bytes at half density are what the layout promises") {
  std::mt19937 random(test::fresh_seed());
  const std::vector<float> unstructured = test::sparse_weights(random, 512, 1024, {Storage::kBitmap, Values::kBf16});
  const std::vector<float> grouped = test::sparse_weights(random, 512, 1024, {Storage::kNm, Values::kBf16, 2, 4});
  const auto bits = [&](const std::vector<float>& values, Format format) {
    return static_cast<double>(test::pack(values, 512, 1024, format).bytes()) * 8 / (512.0 * 1024.0);
  };
  CHECK(bits(unstructured, {Storage::kDense, Values::kBf16}) == 16);
  CHECK(bits(unstructured, {Storage::kDense, Values::kInt8}) == 8.25);
  CHECK(bits(unstructured, {Storage::kDense, Values::kInt4}) == 4.25);
  CHECK(bits(unstructured, {Storage::kBitmap, Values::kBf16}) == doctest::Approx(9.0).epsilon(0.01));
  CHECK(bits(unstructured, {Storage::kBitmap, Values::kInt8}) == doctest::Approx(5.25).epsilon(0.01));
  // The fuller of two groups of 1024 elements, each stored with chance ½, has 16 / √π more than half of them on
  // average.
  CHECK(bits(unstructured, {Storage::kBitmap, Values::kInt4}) ==
        doctest::Approx(1.25 + 2 + 4 * 16 / std::sqrt(3.14159265358979) / 1024).epsilon(0.005));
  CHECK(bits(grouped, {Storage::kNm, Values::kBf16, 2, 4}) == 9);
  CHECK(bits(grouped, {Storage::kNm, Values::kInt8, 2, 4}) == 5.25);
  for (const int m : {4, 8, 16, 32, 64}) CHECK(bits(grouped, {Storage::kNm, Values::kInt4, m / 2, m}) == 3.25);
}

TEST_CASE("n:m packing refuses a group with too many non-zeros, and formats that do not exist are refused") {
  ThreadPool pool(1);
  const std::vector<float> ones(16 * 64, 1.0f);
  const auto status = [&](Format format, int64_t rows, int64_t cols) {
    return PackedMatrix::pack(pool, format, rows, cols,
                              [&](int64_t row, float* out) { std::copy_n(ones.begin() + row * cols, cols, out); })
        .status()
        .code();
  };
  CHECK(status({Storage::kNm, Values::kBf16, 2, 4}, 16, 64) == Code::kUsage);
  CHECK(status({Storage::kNm, Values::kInt4, 2, 4}, 16, 64) == Code::kUsage);
  CHECK(status({Storage::kNm, Values::kBf16, 4, 4}, 16, 64) == Code::kOk);
  CHECK(status({Storage::kNm, Values::kBf16, 4, 4}, 16, 6) == Code::kUsage);
  CHECK(status({Storage::kNm, Values::kInt4, 64, 64}, 16, 64) == Code::kOk);
  CHECK(status({Storage::kNm, Values::kInt4, 64, 128}, 16, 128) == Code::kUsage);
  CHECK(status({Storage::kNm, Values::kInt4, 2, 6}, 16, 192) == Code::kUsage);
  CHECK(status({Storage::kNm, Values::kInt4, 1, 2}, 16, 64) == Code::kUsage);
  CHECK(status({Storage::kNm, Values::kInt4, 4, 8}, 16, 96) == Code::kUsage);
  CHECK(status({Storage::kBitmap, Values::kF32}, 16, 64) == Code::kUsage);
  CHECK(status({Storage::kNm, Values::kBf16, 5, 2}, 16, 64) == Code::kUsage);
  CHECK(status({Storage::kNm, Values::kBf16, 1, 3}, 16, 6) == Code::kUsage);
  CHECK(status({}, 0, 64) == Code::kUsage);
}

TEST_CASE("negative zero is a value: it is kept, and it does not count towards sparsity") {
  std::vector<float> values(16 * 64, -0.0f);
  values[3] = 1;
  const PackedMatrix packed = test::pack(values, 16, 64, {Storage::kBitmap, Values::kBf16});
  CHECK(std::signbit(round_trip(packed)[0]));
  ThreadPool pool(1);
  const ZeroSurvey survey(pool, Values::kBf16, MatrixSource(DType::kF32, 16, 64, values.data()));
  CHECK(survey.choose() == Format{Storage::kDense, Values::kBf16});
}

TEST_CASE("the chosen format follows the zeros") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const auto choose = [&](const std::vector<float>& values, Values kind) {
    return ZeroSurvey(pool, kind, MatrixSource(DType::kF32, 64, 128, values.data())).choose();
  };
  const Format none{Storage::kDense, Values::kBf16};
  CHECK(choose(test::sparse_weights(random, 64, 128, none, 1.0), Values::kBf16) == none);
  CHECK(choose(test::sparse_weights(random, 64, 128, none, 0.8), Values::kBf16) == none);
  CHECK(choose(test::sparse_weights(random, 64, 128, none, 0.3), Values::kInt4) ==
        Format{Storage::kBitmap, Values::kInt4});
  for (const int m : {4, 8, 16, 32, 64}) {
    const std::vector<float> values = test::sparse_weights(random, 64, 128, {Storage::kNm, Values::kBf16, m / 2, m});
    CHECK(choose(values, Values::kBf16) == Format{Storage::kNm, Values::kBf16, m / 2, m});
    CHECK(choose(values, Values::kInt8) == Format{Storage::kNm, Values::kInt8, m / 2, m});
    CHECK(choose(values, Values::kInt4) == Format{Storage::kNm, Values::kInt4, m / 2, m});
    CHECK(choose(values, Values::kF32) == Format{Storage::kDense, Values::kF32});
  }
}
