// The bytes that packing makes, against a packer written straight from the description of the formats.
#include <array>
#include <cmath>
#include <cstring>

#include "packing.h"
#include "sparse/survey.h"
#include "sparse/tile_packer.h"
#include "test_main.h"

using namespace espalier;

namespace {

// The parts of one tile row.
struct Parts {
  std::vector<uint8_t> elements;
  std::vector<uint32_t> masks;
  std::vector<uint16_t> scales;
};

// f16 to the nearest of all finite ones, ties to even: positive ones are in the order of their bits.
uint16_t nearest_f16(double value) {
  const auto error = [&](uint16_t bits) { return std::abs(static_cast<double>(f16_to_float(bits)) - std::abs(value)); };
  uint16_t below = 0;
  uint16_t above = 0x7bff;
  while (above - below > 1) {
    const auto middle = static_cast<uint16_t>((below + above) / 2);
    (static_cast<double>(f16_to_float(middle)) <= std::abs(value) ? below : above) = middle;
  }
  const bool take_above = error(above) < error(below) || (error(above) == error(below) && above % 2 == 0);
  return static_cast<uint16_t>((take_above ? above : below) | (std::signbit(value) ? 0x8000 : 0));
}

// q for scale, both as the float32 arithmetic of the format's definition has them.
float quantised(float weight, float scale, float low, float high) {
  const float inverse = scale == 0 ? 0 : 1 / scale;
  return std::min(std::max(std::nearbyint(weight * inverse), low), high);
}

uint16_t scale_of(Values values, const std::vector<float>& weights) {
  float extreme = 0;
  for (const float weight : weights) extreme = std::abs(weight) > std::abs(extreme) ? weight : extreme;
  if (values == Values::kInt8) return nearest_f16(static_cast<double>(std::abs(extreme) / 127));
  uint16_t best = 0;
  float least = INFINITY;
  for (const float full : {std::abs(extreme) / 7, extreme / -8}) {
    for (const float narrow : {1.0f, 0.95f, 0.9f, 0.85f, 0.8f}) {
      const uint16_t bits = nearest_f16(static_cast<double>(full * narrow));
      const float scale = f16_to_float(bits);
      std::array<float, 8> sums = {};
      for (size_t k = 0; k < weights.size(); ++k) {
        const float error = weights[k] - quantised(weights[k], scale, -8, 7) * scale;
        sums[k % 8] += error * error;
      }
      float total = 0;
      for (const float sum : sums) total += sum;
      if (total < least) {
        least = total;
        best = bits;
      }
    }
  }
  return best;
}

// Weight [row][col] of a tile row as floats; zeros beyond the matrix.
Parts reference(const Format& format, int64_t padded, const std::vector<float>& weights) {
  const int step = vector_step(format.values);
  const int64_t lanes = 16 * step;
  const int64_t size = padded * 16;
  std::vector<uint32_t> codes(static_cast<size_t>(size));
  std::vector<bool> stored(codes.size());
  Parts parts;
  if (is_quantised(format.values)) parts.scales.resize(static_cast<size_t>(padded / 64 * 16));
  const auto place = [&](int64_t row, int64_t col) {
    return static_cast<size_t>(col / step * lanes + row * step + col % step);
  };
  for (int64_t row = 0; row < 16; ++row) {
    for (int64_t col = 0; col < padded; ++col) {
      const float weight = weights[static_cast<size_t>(row * padded + col)];
      uint32_t bits;
      std::memcpy(&bits, &weight, 4);
      uint32_t& code = codes[place(row, col)];
      code = format.values == Values::kBf16 ? float_to_bf16(weight) : bits;
      stored[place(row, col)] = code != 0;
      if (!is_quantised(format.values)) continue;
      stored[place(row, col)] = bits != 0;
      uint16_t& scale = parts.scales[static_cast<size_t>(col / 64 * 16 + row)];
      if (col % 64 == 0) {
        const auto* first = weights.data() + row * padded + col;
        scale = scale_of(format.values, std::vector<float>(first, first + 64));
      }
      const bool wide = format.values == Values::kInt8;
      const float q = quantised(weight, f16_to_float(scale), wide ? -127 : -8, wide ? 127 : 7);
      code = static_cast<uint32_t>(static_cast<int>(q) + (wide ? 128 : 8));
    }
  }
  if (format.storage == Storage::kDense) stored.assign(stored.size(), true);
  for (int64_t first = 0; format.storage == Storage::kNm && first < padded; first += format.m) {
    for (int64_t row = 0; row < 16; ++row) {
      int count = 0;
      for (int64_t col = first; col < first + format.m; ++col) count += stored[place(row, col)];
      for (int64_t col = first; count < format.n; ++col) {
        count += !stored[place(row, col)];
        stored[place(row, col)] = true;
      }
    }
  }
  if (format.storage != Storage::kDense) {
    parts.masks.resize(static_cast<size_t>(size / lanes * (lanes == 64 && format.values != Values::kF32 ? 2 : 1)));
    for (size_t i = 0; i < stored.size(); ++i) parts.masks[i / 32] |= static_cast<uint32_t>(stored[i]) << (i % 32);
  }
  const auto kept = [&](int64_t first, int64_t count) {
    std::vector<uint32_t> list;
    for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(std::min(first + count, size)); ++i) {
      if (stored[i]) list.push_back(codes[i]);
    }
    return list;
  };
  // Of int4, a dense vector of 64 elements shares bytes with the next, a sparse group of 1024 with the next one, if
  // there is one.
  const int64_t sharing = format.storage == Storage::kDense ? lanes : 1024;
  for (int64_t i = 0; format.values == Values::kInt4 && i < size; i += 2 * sharing) {
    std::vector<uint32_t> high = kept(i, sharing);
    std::vector<uint32_t> low = kept(i + sharing, sharing);
    const size_t bytes = std::max(high.size(), low.size());
    high.resize(bytes, 8);
    low.resize(bytes, 8);
    for (size_t k = 0; k < bytes; ++k) parts.elements.push_back(static_cast<uint8_t>(high[k] << 4 | low[k]));
  }
  for (int64_t v = 0; format.values != Values::kInt4 && v < size / lanes; ++v) {
    const std::vector<uint32_t> list = kept(v * lanes, lanes);
    const int bytes = format.values == Values::kF32 ? 4 : format.values == Values::kBf16 ? 2 : 1;
    for (const uint32_t code : list) {
      for (int i = 0; i < bytes; ++i) parts.elements.push_back(static_cast<uint8_t>(code >> (8 * i)));
    }
  }
  return parts;
}

// A matrix as a checkpoint of one type holds it, and as floats.
struct Stored {
  DType dtype;
  int64_t rows;
  int64_t cols;
  std::vector<uint8_t> bytes;

  Stored(DType type, int64_t row_count, int64_t col_count, const std::vector<float>& values)
      : dtype(type), rows(row_count), cols(col_count), bytes(values.size() * (type == DType::kF32 ? 4 : 2) + 1) {
    for (size_t i = 0; i < values.size(); ++i) store_float(type, data(), static_cast<int64_t>(i), values[i]);
  }
  // At an odd address, as in a file.
  uint8_t* data() { return bytes.data() + 1; }
  const uint8_t* data() const { return bytes.data() + 1; }
  MatrixSource source() const { return {dtype, rows, cols, data()}; }

  std::vector<float> tile(int64_t tile_row, int64_t padded) const {
    std::vector<float> out(static_cast<size_t>(16 * padded));
    for (int64_t r = 0; r < 16 && tile_row * 16 + r < rows; ++r)
      load_floats(dtype, data(), (tile_row * 16 + r) * cols, cols, out.data() + r * padded);
    return out;
  }
};

std::vector<float> awkward_weights(std::mt19937& random, int64_t rows, int64_t cols, const Format& format) {
  std::vector<float> values = test::sparse_weights(random, rows, cols, format, format.storage == Storage::kDense);
  // Values that only some types hold exactly, an empty row, a full one, tiny, huge and negative zeros.
  std::uniform_real_distribution<float> factor(0.5f, 2.0f);
  for (float& value : values) value *= factor(random);
  if (rows > 3 && format.storage != Storage::kNm) {
    std::fill(values.begin() + cols, values.begin() + 2 * cols, 0.0f);
    std::fill(values.begin() + 2 * cols, values.begin() + 3 * cols, 1e-30f);
    for (int64_t k = 0; k < cols; ++k) values[static_cast<size_t>(3 * cols + k)] = k % 3 == 0 ? -0.0f : 30000.0f;
  }
  return values;
}

std::vector<Format> formats_for(int64_t cols) {
  std::vector<Format> result;
  for (const Values values : {Values::kBf16, Values::kF32, Values::kInt8, Values::kInt4}) {
    for (const Format format :
         {Format{Storage::kDense, values}, Format{Storage::kBitmap, values}, Format{Storage::kNm, values, 2, 4},
          Format{Storage::kNm, values, 4, 8}, Format{Storage::kNm, values, 16, 32}, Format{Storage::kNm, values, 2, 6},
          Format{Storage::kNm, values, 32, 64}, Format{Storage::kNm, values, 5, 64}}) {
      if (format_exists(format, cols)) result.push_back(format);
    }
  }
  return result;
}

struct Shape {
  int64_t rows;
  int64_t cols;
};
constexpr Shape kShapes[] = {{16, 64}, {1, 64}, {17, 96}, {20, 288}, {33, 4}, {5, 130}, {18, 7}, {4, 320}, {35, 256}};

}  // namespace

TEST_CASE("every instruction set packs every tile row to the bytes that the description of the formats gives") {
  std::mt19937 random(test::fresh_seed());
  int compared = 0;
  for (const Isa isa : kIsas) {
    const TilePacker* packer = tile_packer(isa);
    if (packer == nullptr) {
      MESSAGE("no packer for " << isa_name(isa) << " here");
      continue;
    }
    for (const Shape shape : kShapes) {
      for (const Format& format : formats_for(shape.cols)) {
        for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
          CAPTURE(isa_name(isa));
          CAPTURE(format.name());
          CAPTURE(dtype_name(dtype));
          CAPTURE(shape.rows);
          CAPTURE(shape.cols);
          const Stored stored(dtype, shape.rows, shape.cols, awkward_weights(random, shape.rows, shape.cols, format));
          const PackedBlock block{format, dtype, shape.rows, shape.cols, 0};
          std::vector<float> scratch;
          for (int64_t t = 0; t < block.tile_rows(); ++t) {
            const Parts expected = reference(format, block.padded_cols(), stored.tile(t, block.padded_cols()));
            std::vector<uint8_t> codes(static_cast<size_t>(block.vectors() * 64));
            std::vector<uint8_t> elements(static_cast<size_t>(block.tile_bytes()) + 64);
            std::vector<uint32_t> masks(expected.masks.size());
            std::vector<uint16_t> scales(expected.scales.size());
            const int64_t bytes = packer->pack(format, stored.source().tile(t, scratch), block.padded_cols(),
                                               codes.data(), elements.data(), masks.data(), scales.data());
            REQUIRE(bytes == static_cast<int64_t>(expected.elements.size()));
            elements.resize(expected.elements.size());
            CHECK(elements == expected.elements);
            CHECK(masks == expected.masks);
            CHECK(scales == expected.scales);
            if (!masks.empty()) CHECK(packer->stored_bytes(format.values, masks.data(), block.vectors()) == bytes);
            ++compared;
          }
        }
      }
    }
  }
  CHECK(compared > 300);
}

TEST_CASE("a whole matrix is its tile rows at their places, the same bytes for any number of threads") {
  std::mt19937 random(test::fresh_seed());
  for (const Shape shape : kShapes) {
    for (const Format& format : formats_for(shape.cols)) {
      CAPTURE(format.name());
      CAPTURE(shape.rows);
      CAPTURE(shape.cols);
      const Stored stored(DType::kBF16, shape.rows, shape.cols,
                          awkward_weights(random, shape.rows, shape.cols, format));
      ThreadPool one(1);
      const Result<PackedMatrix> packed = PackedMatrix::pack(one, format, stored.source());
      REQUIRE(packed.is_ok());
      const PackedMatrix& matrix = packed.value();
      CHECK(matrix.validate().is_ok());
      for (int64_t t = 0; t < matrix.tile_rows(); ++t) {
        const Parts expected = reference(format, matrix.padded_cols(), stored.tile(t, matrix.padded_cols()));
        REQUIRE(matrix.elements(t + 1) - matrix.elements(t) == static_cast<int64_t>(expected.elements.size()));
        CHECK(std::equal(expected.elements.begin(), expected.elements.end(), matrix.elements(t)));
        if (!expected.masks.empty())
          CHECK(std::memcmp(matrix.masks(t), expected.masks.data(), expected.masks.size() * 4) == 0);
        if (!expected.scales.empty())
          CHECK(std::memcmp(matrix.scales(t), expected.scales.data(), expected.scales.size() * 2) == 0);
      }
      for (const int threads : {2, 5}) {
        ThreadPool pool(threads);
        const ZeroSurvey survey(pool, format.values, stored.source());
        const Result<PackedMatrix> again = PackedMatrix::pack(pool, format, stored.source(), &survey);
        REQUIRE(again.is_ok());
        REQUIRE(again.value().block_bytes() == matrix.block_bytes());
        CHECK(std::memcmp(again.value().block(), matrix.block(), static_cast<size_t>(matrix.block_bytes())) == 0);
      }
    }
  }
}

TEST_CASE("expanded to dense, a matrix is the one packed dense") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  for (const Shape shape : kShapes) {
    for (const Format& format : formats_for(shape.cols)) {
      CAPTURE(format.name());
      CAPTURE(shape.cols);
      const Stored stored(DType::kBF16, shape.rows, shape.cols,
                          awkward_weights(random, shape.rows, shape.cols, format));
      const Result<PackedMatrix> packed = PackedMatrix::pack(pool, format, stored.source());
      const Result<PackedMatrix> direct = PackedMatrix::pack(pool, {Storage::kDense, format.values}, stored.source());
      REQUIRE(packed.is_ok());
      REQUIRE(direct.is_ok());
      const Result<PackedMatrix> dense = packed.value().to_dense(pool);
      REQUIRE(dense.is_ok());
      REQUIRE(dense.value().block_bytes() == direct.value().block_bytes());
      const auto size = static_cast<size_t>(direct.value().block_bytes());
      CHECK(std::memcmp(dense.value().block(), direct.value().block(), size) == 0);
    }
  }
}

TEST_CASE("the survey counts zeros and the bytes of a bitmap's tile rows") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  for (const Shape shape : kShapes) {
    for (const Values values : {Values::kBf16, Values::kInt8, Values::kInt4}) {
      const Format format{Storage::kBitmap, values};
      const Stored stored(DType::kF32, shape.rows, shape.cols, awkward_weights(random, shape.rows, shape.cols, format));
      const ZeroSurvey survey(pool, values, stored.source());
      int64_t zeros = 0;
      std::vector<float> row(static_cast<size_t>(shape.cols));
      for (int64_t r = 0; r < shape.rows; ++r) {
        load_floats(DType::kF32, stored.data(), r * shape.cols, shape.cols, row.data());
        for (const float value : row) {
          zeros += values == Values::kBf16 ? float_to_bf16(value) == 0 : value == 0 && !std::signbit(value);
        }
      }
      CHECK(survey.zeros() == zeros);
      const PackedBlock block{format, DType::kF32, shape.rows, shape.cols, 0};
      REQUIRE(static_cast<int64_t>(survey.tile_bytes().size()) == block.tile_rows());
      for (int64_t t = 0; t < block.tile_rows(); ++t) {
        const Parts expected = reference(format, block.padded_cols(), stored.tile(t, block.padded_cols()));
        CHECK(survey.tile_bytes()[static_cast<size_t>(t)] == static_cast<int64_t>(expected.elements.size()));
      }
    }
  }
}
