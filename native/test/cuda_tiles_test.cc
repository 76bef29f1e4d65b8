// Layouts of the GPU's products, on the host: against the matrix that was packed, and against positions written out by
// hand.
#include <cstring>

#include "core/dtype.h"
#include "kernels/cuda/tile_codec.h"
#include "kernels/cuda/tiled_weights.h"
#include "packing.h"
#include "test_main.h"

using namespace espalier;
using namespace espalier::cuda;

namespace {

struct Case {
  TileLayout layout;
  int n;
  Format zeros;  // what zeros it wants
  double density;
};
const Case kCases[] = {{TileLayout::kTwoFour, 0, {Storage::kNm, Values::kBf16, 2, 4}, 0.5},
                       {TileLayout::kBalanced, 16, {Storage::kNm, Values::kBf16, 16, 32}, 0.5},
                       {TileLayout::kBalanced, 10, {Storage::kNm, Values::kBf16, 10, 32}, 0.5},
                       {TileLayout::kBitmap, 0, {Storage::kBitmap, Values::kBf16}, 0.5},
                       {TileLayout::kBitmap, 0, {Storage::kBitmap, Values::kBf16}, 0.05},
                       {TileLayout::kBitmap, 0, {Storage::kDense, Values::kBf16}, 1.0},
                       {TileLayout::kDense, 0, {Storage::kDense, Values::kBf16}, 1.0}};
constexpr int64_t kShapes[][2] = {{16, 128}, {1, 32}, {50, 288}, {33, 1056}};

MatrixSource source(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {DType::kF32, rows, cols, values.data()};
}

uint32_t word(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}

}  // namespace

TEST_CASE("tiles give back the matrices they were made of") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  for (const Case& sample : kCases) {
    for (const auto& shape : kShapes) {
      const auto rows = shape[0];
      const auto cols = shape[1];
      CAPTURE(layout_name(sample.layout, sample.n));
      CAPTURE(rows);
      CAPTURE(cols);
      std::vector<std::vector<float>> matrices;
      std::vector<MatrixSource> sources;
      for (int i = 0; i < 3; ++i)
        matrices.push_back(test::sparse_weights(random, rows, cols, sample.zeros, sample.density));
      for (const std::vector<float>& values : matrices) sources.push_back(source(values, rows, cols));
      const Result<TiledWeights> tiled = tile_weights(pool, sample.layout, sources, sample.n);
      REQUIRE_MESSAGE(tiled.is_ok(), tiled.status().message());
      CHECK(validate_tiles(pool, tiled.value()).is_ok());
      for (size_t i = 0; i < matrices.size(); ++i) {
        std::vector<float> out(matrices[i].size(), -1.0f);
        REQUIRE(untile_weights(pool, tiled.value(), static_cast<int64_t>(i), out.data()).is_ok());
        CHECK(out == matrices[i]);
      }
    }
  }
}

TEST_CASE("a matrix packed for the CPU gives the tiles of its elements") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const Format format{Storage::kBitmap, Values::kBf16};
  const std::vector<float> values = test::sparse_weights(random, 40, 192, format);
  const MatrixSource plain = source(values, 40, 192);
  const Result<TiledWeights> expected = tile_weights(pool, TileLayout::kBitmap, std::span(&plain, 1));
  const Result<TiledWeights> tiled = tile_weights(pool, TileLayout::kBitmap, test::pack(values, 40, 192, format));
  REQUIRE(expected.is_ok());
  REQUIRE(tiled.is_ok());
  REQUIRE(tiled.value().tiles.size() == expected.value().tiles.size());
  CHECK(std::memcmp(tiled.value().tiles.data(), expected.value().tiles.data(), tiled.value().tiles.size()) == 0);
  CHECK(tiled.value().starts == expected.value().starts);
}

TEST_CASE("half of the weights take nine bits each, and a bitmap hardly more") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  for (const Case& sample : kCases) {
    if (sample.density != 0.5 || sample.n == 10) continue;
    const std::vector<float> values = test::sparse_weights(random, 256, 2048, sample.zeros, 0.5);
    const MatrixSource matrix = source(values, 256, 2048);
    const Result<TiledWeights> tiled = tile_weights(pool, sample.layout, std::span(&matrix, 1), sample.n);
    REQUIRE(tiled.is_ok());
    const double bits = 8.0 * static_cast<double>(tiled.value().bytes()) / (256 * 2048);
    CAPTURE(layout_name(sample.layout, sample.n));
    if (sample.layout == TileLayout::kBitmap) {
      CHECK(bits > 9.0);
      CHECK(bits < 9.2);
    } else {
      CHECK(bits == 9.0);
    }
  }
}

TEST_CASE("values and positions of 2:4 lie where mma.sp wants them") {
  Tile tile{};
  // Lane 4g + t = 14 has rows 3 and 11. Second 32 inputs, group 5 (inputs 52 to 55): values 10 and 11 of the row's 16,
  // which are register 2 of lanes with t = 1, so of lane 13.
  tile.at[3][52] = 0x3f80;
  tile.at[3][55] = 0x4000;
  tile.at[11][54] = 0x4040;
  uint8_t data[kTwoFourBytes];
  REQUIRE(encode_two_four(tile, data));
  CHECK(word(data + 512 + 13 * 16 + 8) == 0x40003f80u);
  // A lone value at 2 goes with the place after it.
  CHECK(word(data + 512 + 13 * 16 + 12) == 0x00004040u);
  // Groups 4 to 7 of the second 32 inputs: the lane of its four with t = 3, rows 3 and 11; group 5 is the second
  // nibble.
  const uint32_t positions = word(data + 2048 + (3 * 4 + 3) * 4);
  CHECK((positions >> 4 & 15u) == (0u | 3u << 2));
  CHECK((positions >> 20 & 15u) == (2u | 3u << 2));
}

TEST_CASE("2:4 keeps a lone value wherever it is among four") {
  Tile tile{};
  for (int i = 0; i < 4; ++i) tile.at[i][8 * i + i] = static_cast<uint16_t>(0x3f80 + i);
  uint8_t data[kTwoFourBytes];
  REQUIRE(encode_two_four(tile, data));
  Tile out;
  REQUIRE(decode_two_four(data, out));
  CHECK(std::memcmp(&out, &tile, sizeof tile) == 0);
}

TEST_CASE("a bitmap's values lie step by step, then lane by lane, a lane's first row first") {
  Tile tile{};
  // Lane 4g + t = 2: row 0 inputs 16 to 23 of each 32, row 8 likewise. Lane 5: row 1, inputs 8 to 15.
  tile.at[0][16] = 0x0102;
  tile.at[0][32 + 17] = 0x0304;
  tile.at[0][96 + 23] = 0x0506;
  tile.at[8][16] = 0x0708;
  for (int i = 1; i < 7; ++i) tile.at[8][32 + 16 + i] = static_cast<uint16_t>(0x1122 + i);
  for (int i = 0; i < 5; ++i) tile.at[1][8 + i] = static_cast<uint16_t>(0x4243 + i);
  std::vector<uint8_t> data(static_cast<size_t>(bitmap_bytes(tile)));
  // 15 values.
  CHECK(data.size() == 16 + 256 + 32);
  encode_bitmap(tile, data.data());
  // Inputs 0 to 3 of each lane's first eight are step 0: two values of lane 2, four of lane 5. The fifth of lane 5 is
  // step 1. Inputs 32 to 63: four of lane 2 in step 2, three in step 3. Its last one is step 7.
  CHECK(word(data.data()) == (0u | 12u << 16));
  CHECK(word(data.data() + 4) == (14u | 22u << 16));
  CHECK(word(data.data() + 8) == 28u * 0x10001u);
  CHECK(word(data.data() + 12) == 28u * 0x10001u);
  CHECK(word(data.data() + 16 + 2 * 8) == (1u | 1u << 9 | 1u << 31));
  CHECK(word(data.data() + 16 + 2 * 8 + 4) == (1u | 0x7eu << 8));
  CHECK(word(data.data() + 16 + 5 * 8) == 0x1fu);
  const uint8_t* quads = data.data() + 16 + 256;
  CHECK(word(quads) == 0x44430802u);
  CHECK(word(quads + 4) == 0x42420701u);
  CHECK(word(quads + 8) == 0x04474645u);
  CHECK(word(quads + 12) == 0x03424242u);
  CHECK(word(quads + 16) == 0x26252423u);
  CHECK(word(quads + 24) == 0x00062827u);
  CHECK(word(quads + 28) == 0x00051111u);
}

TEST_CASE("n:32 has the masks, then quad after quad of all lanes") {
  Tile tile{};
  // Lane 4g + t = 6: row 1 inputs 64 to 95, row 9 likewise.
  for (int i = 0; i < 3; ++i) {
    tile.at[1][64 + 10 * i] = static_cast<uint16_t>(0x0102 + i);
    tile.at[9][65 + 3 * i] = static_cast<uint16_t>(0x0a0b + i);
  }
  std::vector<uint8_t> data(static_cast<size_t>(balanced_bytes(3)));
  CHECK(data.size() == 256 + 2 * 256);
  REQUIRE(encode_balanced(tile, 3, data.data()));
  CHECK(word(data.data() + 6 * 8) == (1u | 1u << 10 | 1u << 20));
  CHECK(word(data.data() + 6 * 8 + 4) == (1u << 1 | 1u << 4 | 1u << 7));
  CHECK(word(data.data() + 256 + 6 * 8) == 0x0d0c0b02u);
  CHECK(word(data.data() + 256 + 6 * 8 + 4) == 0x0a0a0a01u);
  CHECK(word(data.data() + 512 + 6 * 8) == 0x00000403u);
}

TEST_CASE("what a layout cannot hold is an error that says where") {
  ThreadPool pool(1);
  std::vector<float> values(32 * 256, 0.0f);
  for (int k = 132; k < 135; ++k) values[20 * 256 + static_cast<size_t>(k)] = 1.0f;
  const MatrixSource matrix = source(values, 32, 256);
  const Result<TiledWeights> three = tile_weights(pool, TileLayout::kTwoFour, std::span(&matrix, 1));
  REQUIRE(!three.is_ok());
  CHECK(three.status().code() == Code::kUsage);
  CHECK(three.status().message() == "matrix 0 at row 16, column 128 has more non-zeros than 2:4 holds");
  CHECK(tile_weights(pool, TileLayout::kBalanced, std::span(&matrix, 1), 2).status().code() == Code::kUsage);
  CHECK(tile_weights(pool, TileLayout::kBalanced, std::span(&matrix, 1), 33).status().code() == Code::kUsage);
  CHECK(tile_weights(pool, TileLayout::kBalanced, std::span(&matrix, 1), 3).is_ok());
  const MatrixSource odd = source(values, 4, 48);
  CHECK(tile_weights(pool, TileLayout::kBitmap, std::span(&odd, 1)).status().code() == Code::kUsage);
  CHECK(tile_weights(pool, TileLayout::kBitmap, std::span<const MatrixSource>()).status().code() == Code::kUsage);
  const MatrixSource two[] = {matrix, source(values, 16, 256)};
  CHECK(tile_weights(pool, TileLayout::kBitmap, two).status().code() == Code::kUsage);
}

TEST_CASE("dense tiles hold a lane's inputs of each of its rows in 16 bytes") {
  Tile tile;
  for (int row = 0; row < kTileHeight; ++row) {
    for (int col = 0; col < kTileWidth; ++col) tile.at[row][col] = static_cast<uint16_t>(row * kTileWidth + col);
  }
  uint8_t data[kDenseBytes];
  encode_dense(tile, data);
  // Lane 4 · 3 + 2, inputs 32 · 1 + 8 · 2 of rows 3 and 3 + 8.
  for (int half = 0; half < 2; ++half) {
    uint16_t first;
    std::memcpy(&first, data + (2 + half) * 512 + 14 * 16, 2);
    CHECK(first == (3 + 8 * half) * kTileWidth + 48);
  }
}

TEST_CASE("the layout follows the zeros") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const auto choose = [&](const Format& zeros, double density) {
    const std::vector<float> values = test::sparse_weights(random, 64, 512, zeros, density);
    const MatrixSource matrix = source(values, 64, 512);
    return choose_tiles(pool, std::span(&matrix, 1));
  };
  const Format free{Storage::kBitmap, Values::kBf16};
  CHECK(choose({Storage::kNm, Values::kBf16, 2, 4}, 0.5).layout == TileLayout::kTwoFour);
  const TileChoice balanced = choose({Storage::kNm, Values::kBf16, 16, 32}, 0.5);
  CHECK(balanced.layout == TileLayout::kBalanced);
  CHECK(balanced.n == 16);
  CHECK(choose(free, 0.5).layout == TileLayout::kBitmap);
  CHECK(choose(free, 0.3).layout == TileLayout::kBitmap);
  CHECK(choose(free, 0.9).layout == TileLayout::kDense);
  // One matrix that is dense makes its neighbours dense.
  const std::vector<float> sparse = test::sparse_weights(random, 64, 512, {Storage::kNm, Values::kBf16, 2, 4});
  const std::vector<float> dense = test::sparse_weights(random, 64, 512, {Storage::kDense, Values::kBf16}, 1.0);
  const MatrixSource both[] = {source(sparse, 64, 512), source(dense, 64, 512)};
  CHECK(choose_tiles(pool, both).layout == TileLayout::kDense);
}

TEST_CASE("tiles that contradict themselves are refused") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(1);
  for (const Case& sample : kCases) {
    if (sample.density == 1.0) continue;
    const std::vector<float> values = test::sparse_weights(random, 32, 256, sample.zeros, sample.density);
    const MatrixSource matrix = source(values, 32, 256);
    Result<TiledWeights> tiled = tile_weights(pool, sample.layout, std::span(&matrix, 1), sample.n);
    REQUIRE(tiled.is_ok());
    TiledWeights& weights = tiled.value();
    CAPTURE(layout_name(sample.layout, sample.n));
    // The last positions, the first mask, or where the first steps of a bitmap begin.
    const int last = sample.layout == TileLayout::kTwoFour ? kTwoFourBytes - 4 : 0;
    uint8_t* const damaged = weights.tiles.data() + last;
    const uint32_t saved = word(damaged);
    std::memset(damaged, saved == 0 ? 0xff : 0, 4);
    CHECK(validate_tiles(pool, weights).code() == Code::kSparse);
    std::memcpy(damaged, &saved, 4);
    CHECK(validate_tiles(pool, weights).is_ok());
    if (sample.layout != TileLayout::kBitmap) continue;
    --weights.most_tile_bytes;
    CHECK(validate_tiles(pool, weights).code() == Code::kSparse);
    ++weights.most_tile_bytes;
    std::swap(weights.starts[1], weights.starts[2]);
    CHECK(validate_tiles(pool, weights).code() == Code::kSparse);
  }
}

TEST_CASE("no single wrong bit before the values of a bitmap goes unseen") {
  std::mt19937 random(test::fresh_seed());
  for (const double density : {0.0, 0.001, 0.05, 0.5, 1.0}) {
    CAPTURE(density);
    std::bernoulli_distribution stored(density);
    Tile tile{};
    for (auto& row : tile.at) {
      for (uint16_t& weight : row) weight = stored(random) ? static_cast<uint16_t>(1 + random() % 0xffff) : 0;
    }
    std::vector<uint8_t> data(static_cast<size_t>(bitmap_bytes(tile)));
    encode_bitmap(tile, data.data());
    const auto refused = [&] {
      Tile seen;
      return !decode_bitmap(data.data(), static_cast<int64_t>(data.size()), seen);
    };
    CHECK(!refused());
    int unseen = 0;
    for (size_t bit = 0; bit < size_t{8} * kBitmapHead; ++bit) {
      const auto wrong = static_cast<uint8_t>(1 << bit % 8);
      data[bit / 8] ^= wrong;
      unseen += refused() ? 0 : 1;
      data[bit / 8] ^= wrong;
    }
    CHECK(unseen == 0);
    CHECK(!refused());
  }
}
