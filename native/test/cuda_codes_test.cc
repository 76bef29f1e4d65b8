// Tiles of int8 codes for the GPU's products, on the host: against what the CPU packed, and against places written out
// by hand.
#include <cstring>

#include "kernels/cuda/code_tiles.h"
#include "kernels/cuda/tiled_weights.h"
#include "packing.h"
#include "test_main.h"

using namespace espalier;
using namespace espalier::cuda;

namespace {

// Weights that the CPU rounded.
struct Codes {
  int64_t rows;
  int64_t cols;
  std::vector<float> weights;
  std::vector<int8_t> codes;
  std::vector<uint16_t> scales;

  Codes(ThreadPool& pool, const PackedMatrix& packed)
      : rows(packed.rows()),
        cols(packed.cols()),
        weights(static_cast<size_t>(rows * cols)),
        codes(weights.size()),
        scales(static_cast<size_t>(rows * packed.groups())) {
    packed.unpack(pool, weights.data());
    packed.unpack_codes(pool, codes.data(), scales.data());
  }
  CodeMatrix view() const { return {rows, cols, codes.data(), scales.data()}; }
};

uint32_t word(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}
float bf16_at(uint32_t pair, int i) { return bf16_to_float(static_cast<uint16_t>(pair >> (16 * i))); }

const Format kTwoInFour{Storage::kNm, Values::kInt8, 2, 4};
const Format kDense{Storage::kDense, Values::kInt8};

}  // namespace

TEST_CASE("tiles of codes give back what the CPU's int8 weights stand for") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  for (const auto& [layout, format] :
       {std::pair{TileLayout::kTwoFourInt8, kTwoInFour}, {TileLayout::kDenseInt8, kDense}}) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{16, 128}, {1, 64}, {50, 320}, {33, 1088}}) {
      CAPTURE(layout_name(layout, 0));
      CAPTURE(rows);
      CAPTURE(cols);
      std::vector<Codes> matrices;
      for (int i = 0; i < 3; ++i) {
        const std::vector<float> values = test::sparse_weights(random, rows, cols, format, 1.0);
        matrices.emplace_back(pool, test::pack(values, rows, cols, format));
      }
      std::vector<CodeMatrix> views;
      for (const Codes& matrix : matrices) views.push_back(matrix.view());
      CHECK(choose_code_tiles(pool, views) == layout);
      const Result<TiledWeights> tiled = tile_codes(pool, layout, views);
      REQUIRE_MESSAGE(tiled.is_ok(), tiled.status().message());
      CHECK(validate_tiles(pool, tiled.value()).is_ok());
      for (size_t i = 0; i < matrices.size(); ++i) {
        std::vector<float> out(matrices[i].weights.size(), -1.0f);
        REQUIRE(untile_weights(pool, tiled.value(), static_cast<int64_t>(i), out.data()).is_ok());
        CHECK(out == matrices[i].weights);
      }
      if (rows == 16) {
        CHECK(tiled.value().bytes() == 3 * (layout == TileLayout::kDenseInt8 ? 2112 : 1344));
      }
    }
  }
}

TEST_CASE("a matrix packed for the CPU becomes the tiles of its codes") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const PackedMatrix packed = test::pack(test::sparse_weights(random, 50, 320, kTwoInFour, 1.0), 50, 320, kTwoInFour);
  const Codes codes(pool, packed);
  const CodeMatrix view = codes.view();
  for (const TileLayout layout : {TileLayout::kTwoFourInt8, TileLayout::kDenseInt8}) {
    const Result<TiledWeights> tiled = tile_codes(pool, layout, packed);
    const Result<TiledWeights> wanted = tile_codes(pool, layout, {&view, 1});
    REQUIRE(tiled.is_ok());
    REQUIRE(wanted.is_ok());
    REQUIRE(tiled.value().bytes() == wanted.value().bytes());
    CHECK(std::memcmp(tiled.value().tiles.data(), wanted.value().tiles.data(), wanted.value().tiles.size()) == 0);
  }
  const Format bf16{Storage::kDense, Values::kBf16};
  const PackedMatrix floats = test::pack(test::sparse_weights(random, 16, 64, bf16, 1.0), 16, 64, bf16);
  CHECK(tile_codes(pool, TileLayout::kDenseInt8, floats).status().code() == Code::kUsage);
}

TEST_CASE("a mask of a word of codes gives two bf16 numbers, and one of the rotated word two more") {
  CodeTile tile{};
  const int8_t codes[] = {-127, 1, 64, -3, 5, 0, -1, 127};
  // Lane 4 · 3 + 2, inputs 32 · 1 + 8 · 2 of row 3 + 8.
  std::memcpy(&tile.at[11][48], codes, 8);
  tile.scales[11][1] = 0x1234;
  uint8_t data[kDenseCodesBytes];
  encode_dense_codes(tile, data);
  for (int half = 0; half < 2; ++half) {
    CHECK(word(data + 512 + 14 * 16 + half * 8) == 0);
    const uint32_t joined = word(data + 512 + 14 * 16 + half * 8 + 4);
    const uint32_t pairs[] = {joined & 0x807f807fu, (joined << 8 | joined >> 24) & 0x807f807fu};
    for (int i = 0; i < 4; ++i) {
      CHECK(bf16_at(pairs[i / 2], i % 2) == std::ldexp(static_cast<float>(codes[4 * half + i]), -133));
    }
  }
  // Lanes of g = 3: of the second 64 inputs the high half is row 3 + 8.
  CHECK(word(data + 2048 + 3 * 8) == 0);
  CHECK(word(data + 2048 + 3 * 8 + 4) == 0x12340000u);
}

TEST_CASE("codes and positions of 2:4 lie where mma.sp wants them") {
  CodeTile tile{};
  // Fourth 32 inputs, group 5 (inputs 116 to 119): values 10 and 11 of the row's 16, which are register 2 (row 3) and 3
  // (row 11) of lane 4 · 3 + 1.
  tile.at[3][116] = 7;
  tile.at[3][119] = -9;
  tile.at[11][118] = 11;
  uint8_t data[kTwoFourCodesBytes];
  REQUIRE(encode_two_four_codes(tile, data));
  const uint32_t joined = word(data + 512 + 13 * 16 + 12);
  CHECK((joined & 0x807f807fu) == (7u | 0x8009u << 16));
  // A lone value at 2 goes with the place after it.
  CHECK(((joined << 8 | joined >> 24) & 0x807f807fu) == 11u);
  // Lane 4 · 3 + 3 has groups 4 to 7 of the fourth 32 inputs, in the second word.
  const uint32_t positions = word(data + 1024 + 15 * 8 + 4);
  CHECK((positions >> 4 & 15u) == (0u | 3u << 2));
  CHECK((positions >> 20 & 15u) == (2u | 3u << 2));
}

TEST_CASE("codes that a layout cannot hold, and tiles that contradict themselves") {
  ThreadPool pool(1);
  std::vector<int8_t> codes(32 * 256, 0);
  const std::vector<uint16_t> scales(32 * 4, 0x3c00);
  for (size_t k = 132; k < 135; ++k) codes[20 * 256 + k] = 1;
  const CodeMatrix matrix(32, 256, codes.data(), scales.data());
  const Result<TiledWeights> three = tile_codes(pool, TileLayout::kTwoFourInt8, {&matrix, 1});
  REQUIRE(!three.is_ok());
  CHECK(three.status().message() == "matrix 0 at row 16, column 128 has more non-zeros than 2:4 int8 holds");
  CHECK(choose_code_tiles(pool, {&matrix, 1}) == TileLayout::kDenseInt8);
  CHECK(tile_codes(pool, TileLayout::kTwoFour, {&matrix, 1}).status().code() == Code::kUsage);
  const CodeMatrix odd(4, 48, codes.data(), scales.data());
  CHECK(tile_codes(pool, TileLayout::kDenseInt8, {&odd, 1}).status().code() == Code::kUsage);
  const std::vector<float> floats(32 * 256, 0.0f);
  const MatrixSource source(DType::kF32, 32, 256, floats.data());
  CHECK(tile_weights(pool, TileLayout::kDenseInt8, {&source, 1}).status().code() == Code::kUsage);

  codes[20 * 256 + 132] = 0;
  Result<TiledWeights> tiled = tile_codes(pool, TileLayout::kTwoFourInt8, {&matrix, 1});
  REQUIRE(tiled.is_ok());
  CHECK(validate_tiles(pool, tiled.value()).is_ok());
  std::memset(tiled.value().tiles.data() + 1024, 0, 4);
  CHECK(validate_tiles(pool, tiled.value()).code() == Code::kSparse);
}
