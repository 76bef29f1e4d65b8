#include "sparse/packed_matrix.h"

#include "test_main.h"

using namespace espalier;

namespace {

struct Shape {
  int64_t rows;
  int64_t cols;
};

constexpr Shape kShapes[] = {{16, 32}, {1, 64}, {17, 96}, {48, 288}, {33, 4}, {100, 352}};

PackedMatrix::RowReader reader(const std::vector<float>& dense, int64_t cols) {
  return [&dense, cols](int64_t row, float* out) { std::copy_n(dense.begin() + row * cols, cols, out); };
}

// bf16-representable values with about `density` of them kept.
std::vector<float> sparse_values(std::mt19937& random, Shape shape, double density) {
  std::vector<float> values = test::normal_floats(random, static_cast<size_t>(shape.rows * shape.cols));
  std::bernoulli_distribution keep(density);
  for (float& value : values) value = keep(random) ? bf16_to_float(float_to_bf16(value)) : 0.0f;
  return values;
}

// Zeroes all but n random elements of each m.
void prune_groups(std::mt19937& random, std::vector<float>& values, int n, int m) {
  std::vector<int> order(static_cast<size_t>(m));
  for (size_t first = 0; first < values.size(); first += static_cast<size_t>(m)) {
    for (int i = 0; i < m; ++i) order[static_cast<size_t>(i)] = i;
    std::shuffle(order.begin(), order.end(), random);
    for (int i = n; i < m; ++i) values[first + static_cast<size_t>(order[static_cast<size_t>(i)])] = 0;
  }
}

std::vector<float> round_trip(ThreadPool& pool, const PackedMatrix& packed) {
  std::vector<float> out(static_cast<size_t>(packed.rows() * packed.cols()), -1.0f);
  packed.unpack(pool, out.data());
  return out;
}

}  // namespace

TEST_CASE("every format gives back the values it was given") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  for (const Shape shape : kShapes) {
    CAPTURE(shape.rows);
    CAPTURE(shape.cols);
    for (const Format format : {Format{Storage::kDense, DType::kBF16}, Format{Storage::kBitmap, DType::kBF16},
                                Format{Storage::kDense, DType::kF32}, Format{Storage::kNm, DType::kBF16, 2, 4}}) {
      CAPTURE(format.name());
      std::vector<float> values = sparse_values(random, shape, 0.5);
      if (format.storage == Storage::kNm) prune_groups(random, values, 2, 4);
      Result<PackedMatrix> packed =
          PackedMatrix::pack(pool, format, shape.rows, shape.cols, reader(values, shape.cols));
      REQUIRE(packed.is_ok());
      CHECK(packed.value().validate().is_ok());
      CHECK(round_trip(pool, packed.value()) == values);
    }
  }
}

TEST_CASE("bf16 packing rounds to nearest even and f32 packing is exact") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(1);
  const std::vector<float> values = test::normal_floats(random, 32 * 64);
  auto f32 = PackedMatrix::pack(pool, {Storage::kDense, DType::kF32}, 32, 64, reader(values, 64));
  CHECK(round_trip(pool, f32.value()) == values);
  auto bf16 = PackedMatrix::pack(pool, {Storage::kDense, DType::kBF16}, 32, 64, reader(values, 64));
  const std::vector<float> rounded = round_trip(pool, bf16.value());
  for (size_t i = 0; i < values.size(); ++i) {
    // The neighbours one bf16 step away are no nearer.
    const double error = std::abs(static_cast<double>(rounded[i]) - static_cast<double>(values[i]));
    CHECK(error <= std::abs(static_cast<double>(values[i])) / 256);
    const uint16_t bits = float_to_bf16(rounded[i]);
    for (const uint16_t near : {static_cast<uint16_t>(bits + 1), static_cast<uint16_t>(bits - 1)}) {
      CHECK(error <= std::abs(static_cast<double>(bf16_to_float(near)) - static_cast<double>(values[i])));
    }
  }
}

TEST_CASE("a bitmap at half density takes nine sixteenths of the dense bytes") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const std::vector<float> values = sparse_values(random, {512, 1024}, 0.5);
  auto dense = PackedMatrix::pack(pool, {Storage::kDense, DType::kBF16}, 512, 1024, reader(values, 1024));
  auto bitmap = PackedMatrix::pack(pool, {Storage::kBitmap, DType::kBF16}, 512, 1024, reader(values, 1024));
  const double ratio = static_cast<double>(bitmap.value().bytes()) / static_cast<double>(dense.value().bytes());
  CHECK(dense.value().bytes() == 512 * 1024 * 2);
  CHECK(ratio == doctest::Approx(9.0 / 16.0).epsilon(0.01));
}

TEST_CASE("n:m packing refuses a group with too many non-zeros") {
  ThreadPool pool(1);
  const std::vector<float> values(16 * 8, 1.0f);
  auto packed = PackedMatrix::pack(pool, {Storage::kNm, DType::kBF16, 2, 4}, 16, 8, reader(values, 8));
  REQUIRE(!packed.is_ok());
  CHECK(packed.status().code() == Code::kUsage);
}

TEST_CASE("formats that do not exist are refused") {
  ThreadPool pool(1);
  const std::vector<float> values(16 * 6, 0.0f);
  for (const Format format : {Format{Storage::kNm, DType::kBF16, 2, 4}, Format{Storage::kBitmap, DType::kF32},
                              Format{Storage::kNm, DType::kBF16, 5, 2}, Format{Storage::kNm, DType::kBF16, 1, 3}}) {
    CAPTURE(format.name());
    CHECK(!PackedMatrix::pack(pool, format, 16, 6, reader(values, 6)).is_ok());
  }
  CHECK(!PackedMatrix::pack(pool, {}, 0, 6, reader(values, 6)).is_ok());
}

TEST_CASE("the chosen format follows the zeros") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const auto choose = [&](const std::vector<float>& values, DType dtype = DType::kBF16) {
    return choose_format(pool, dtype, 64, 128, reader(values, 128));
  };
  CHECK(choose(sparse_values(random, {64, 128}, 1.0)) == Format{Storage::kDense, DType::kBF16});
  CHECK(choose(sparse_values(random, {64, 128}, 0.8)) == Format{Storage::kDense, DType::kBF16});
  CHECK(choose(sparse_values(random, {64, 128}, 0.3)) == Format{Storage::kBitmap, DType::kBF16});
  for (const int m : {4, 8, 16, 32}) {
    std::vector<float> values = sparse_values(random, {64, 128}, 1.0);
    prune_groups(random, values, m / 2, m);
    CHECK(choose(values) == Format{Storage::kNm, DType::kBF16, m / 2, m});
    CHECK(choose(values, DType::kF32) == Format{Storage::kDense, DType::kF32});
  }
}
