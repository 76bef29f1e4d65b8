// What measurements stand on: a read that reads everything, and matrices that are what their format says.
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/aligned.h"
#include "core/read_ceiling.h"
#include "sparse/random_matrix.h"
#include "test_main.h"

using namespace espalier;

namespace {

std::vector<float> unpacked(ThreadPool& pool, const PackedMatrix& matrix) {
  std::vector<float> values(static_cast<size_t>(matrix.rows() * matrix.cols()));
  matrix.unpack(pool, values.data());
  return values;
}

}  // namespace

TEST_CASE("a read takes in every word, whatever the size and the number of threads") {
  std::mt19937_64 random(test::fresh_seed());
  for (const int64_t lines : {1, 2, 3, 4, 5, 7, 64, 16384, 16385, 40001}) {
    AlignedBuffer<uint8_t> buffer(static_cast<size_t>(lines * kCacheLine));
    uint64_t expected = 0;
    for (int64_t i = 0; i < lines * 8; ++i) {
      const uint64_t word = random();
      std::memcpy(buffer.data() + i * 8, &word, sizeof word);
      expected ^= word;
    }
    for (const int threads : {1, 2, 5}) {
      ThreadPool pool(threads);
      CAPTURE(lines);
      CAPTURE(threads);
      for (const Reading reading : {Reading::kPrefetched, Reading::kPlain}) {
        CHECK(read_lines(pool, buffer.data(), lines, reading) == expected);
      }
    }
  }
}

TEST_CASE("a ceiling is a finite rate; no bytes have none") {
  ThreadPool pool(2);
  for (const int64_t bytes : {1, 1000, 3000000}) {
    const Result<double> rate = read_ceiling(pool, bytes);
    REQUIRE(rate.is_ok());
    CHECK(rate.value() > 0);
    CHECK(std::isfinite(rate.value()));
  }
  for (const int64_t bytes : {0, -1}) CHECK(read_ceiling(pool, bytes).status().code() == Code::kUsage);
}

TEST_CASE("a ceiling is read from memory of its size, not from pages that share one") {
  const auto peak_kib = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  ThreadPool pool(2);
  const int64_t before = peak_kib();
  constexpr int64_t kKib = 512 * 1024;
  REQUIRE(read_ceiling(pool, kKib * 1024).is_ok());
  CHECK(peak_kib() >= before + kKib / 2);
}

TEST_CASE("random matrices have the zeros of their format and values all over") {
  ThreadPool pool(2);
  const uint32_t seed = test::fresh_seed();
  constexpr int64_t kRows = 200;
  constexpr int64_t kCols = 512;
  for (const Format format :
       {Format{Storage::kDense, Values::kBf16}, Format{Storage::kBitmap, Values::kBf16},
        Format{Storage::kNm, Values::kBf16, 2, 4}, Format{Storage::kNm, Values::kBf16, 1, 8},
        Format{Storage::kNm, Values::kBf16, 16, 32}, Format{Storage::kNm, Values::kBf16, 32, 64}}) {
    CAPTURE(format.name());
    const Result<PackedMatrix> matrix = random_matrix(pool, format, kRows, kCols, 0.7, seed);
    REQUIRE(matrix.is_ok());
    CHECK(matrix.value().format() == format);
    CHECK(matrix.value().validate().is_ok());
    const std::vector<float> values = unpacked(pool, matrix.value());
    const auto zeros = static_cast<double>(std::count(values.begin(), values.end(), 0.0f)) / (kRows * kCols);
    if (format.storage == Storage::kDense) CHECK(zeros == 0);
    // Six standard deviations of 64 distinct rows.
    if (format.storage == Storage::kBitmap) CHECK(std::abs(zeros - 0.7) < 6 * std::sqrt(0.21 / (64 * kCols)));
    if (format.storage == Storage::kNm) CHECK(zeros == 1 - static_cast<double>(format.n) / format.m);
    // No input is favoured: each of the first eight is kept somewhere, and dropped somewhere unless all are kept.
    for (int64_t k = 0; k < 8; ++k) {
      int kept = 0;
      for (int64_t row = 0; row < 64; ++row) kept += values[static_cast<size_t>(row * kCols + k)] != 0 ? 1 : 0;
      CHECK(kept > 0);
      CHECK((kept < 64) == (format.storage != Storage::kDense));
    }
    double squares = 0;
    for (const float value : values) squares += static_cast<double>(value) * value;
    CHECK(squares / kRows > 0.5 * (1 - zeros));
    CHECK(squares / kRows < 2 * (1 - zeros));
  }
}

TEST_CASE("a seed gives its matrix again, another seed another") {
  ThreadPool pool(3);
  const Format format{Storage::kBitmap, Values::kInt8};
  const uint32_t seed = test::fresh_seed();
  const auto values = [&](uint32_t of) {
    const Result<PackedMatrix> matrix = random_matrix(pool, format, 70, 128, 0.5, of);
    REQUIRE(matrix.is_ok());
    return unpacked(pool, matrix.value());
  };
  CHECK(values(seed) == values(seed));
  CHECK(values(seed) != values(seed + 1));
}

TEST_CASE("a format that the columns do not allow is refused") {
  ThreadPool pool(1);
  const Format format{Storage::kNm, Values::kBf16, 2, 4};
  CHECK(random_matrix(pool, format, 16, 30, 0.5, 1).status().code() == Code::kUsage);
  CHECK(random_matrix(pool, {Storage::kNm, Values::kBf16, 0, 0}, 16, 32, 0.5, 1).status().code() == Code::kUsage);
  CHECK(random_matrix(pool, format, 0, 32, 0.5, 1).status().code() == Code::kUsage);
}
