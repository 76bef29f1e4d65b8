// The rings of products of many tokens: what a warp of each way goes through (wide.cuh, wide_dense.cuh), against what
// the rings hold.
#include <vector>

#include "kernels/cuda/tile_bytes.h"
#include "kernels/cuda/wide_rings.h"
#include "test_main.h"

using namespace espalier;
using namespace espalier::cuda;

namespace {

int draw(int low, int high) {
  static std::mt19937 random(test::fresh_seed());
  return std::uniform_int_distribution<int>(low, high)(random);
}

// What a warp does, in order: it waits for the next one, or lets go of the first one that it has.
enum class Act { kTakeWeights, kFreeWeights, kTakeBlock, kFreeBlock };
using Acts = std::vector<Act>;

void add(Acts& acts, int count, Act act) { acts.insert(acts.end(), static_cast<size_t>(count), act); }

// Tiles of 128 inputs, one after the other.
Acts one_at_a_time(int tiles, int parts) {
  Acts acts;
  for (int i = 0; i < tiles; ++i) {
    acts.push_back(Act::kTakeWeights);
    add(acts, 2 * parts, Act::kTakeBlock);
    acts.push_back(Act::kFreeWeights);
    add(acts, 2 * parts, Act::kFreeBlock);
  }
  return acts;
}

// The next tile is loaded while two blocks are multiplied by.
Acts loading_ahead(int tiles, int parts) {
  Acts acts = {Act::kTakeWeights};
  for (int i = 0; i < tiles; ++i) {
    acts.push_back(Act::kTakeBlock);
    if (i > 0) acts.push_back(Act::kFreeBlock);
    acts.push_back(Act::kTakeBlock);
    if (parts == 1) acts.push_back(Act::kFreeWeights);
    if (i + 1 < tiles) acts.push_back(Act::kTakeWeights);
    acts.push_back(Act::kFreeBlock);
    for (int part = 0; part < 2 * (parts - 1); ++part) {
      acts.push_back(Act::kTakeBlock);
      if (part == 0) acts.push_back(Act::kFreeWeights);
      acts.push_back(Act::kFreeBlock);
    }
  }
  acts.push_back(Act::kFreeBlock);
  return acts;
}

// Blocks of 64 inputs of both sides.
Acts by_rows(int tiles, int parts) {
  Acts acts;
  for (int i = 0; i < 2 * tiles; ++i) {
    acts.push_back(Act::kTakeWeights);
    add(acts, parts, Act::kTakeBlock);
    if (i == 0) continue;
    acts.push_back(Act::kFreeWeights);
    add(acts, parts, Act::kFreeBlock);
  }
  acts.push_back(Act::kFreeWeights);
  add(acts, parts, Act::kFreeBlock);
  return acts;
}

Acts acts_of(const RingSizes& sizes, int tiles) {
  if (sizes.by_rows) return by_rows(tiles, sizes.parts);
  return sizes.loads_ahead ? loading_ahead(tiles, sizes.parts) : one_at_a_time(tiles, sizes.parts);
}

// Whether a warp comes to its end with rings that are filled again where it lets go.
bool ends(const Acts& acts, const Rings& rings) {
  int weights = 0;
  int blocks = 0;
  for (const Act act : acts) {
    if (act == Act::kTakeWeights && ++weights > rings.stages) return false;
    if (act == Act::kTakeBlock && ++blocks > rings.x_stages) return false;
    if (act == Act::kFreeWeights) --weights;
    if (act == Act::kFreeBlock) --blocks;
  }
  return weights == 0 && blocks == 0;
}

RingSizes random_sizes() {
  RingSizes sizes;
  const int tokens = 32 << draw(0, 3);
  sizes.x_bytes = tokens * 128;
  sizes.weight_bytes = 8 * 128 * draw(8, 64);
  sizes.parts = draw(1, 2);
  sizes.by_rows = draw(0, 2) == 0;
  sizes.loads_ahead = sizes.by_rows || tokens > 64;
  return sizes;
}

}  // namespace

TEST_CASE("no warp waits for ever for a ring") {
  int found = 0;
  for (int round = 0; round < 20000; ++round) {
    const RingSizes sizes = random_sizes();
    const int room = draw(40 << 10, 220 << 10);
    const Rings rings = choose_rings(sizes, room);
    if (rings.x_stages == 0) continue;
    ++found;
    CAPTURE(sizes.x_bytes);
    CAPTURE(sizes.weight_bytes);
    CAPTURE(sizes.parts);
    CAPTURE(sizes.by_rows);
    CAPTURE(room);
    REQUIRE(ends(acts_of(sizes, draw(1, 9)), rings));
    REQUIRE(rings.stages * sizes.weight_bytes + rings.x_stages * sizes.x_bytes <= room);
  }
  CHECK(found > 10000);
}

TEST_CASE("tiles of any bitmap have rings on a Hopper GPU") {
  for (int tokens = 32; tokens <= 256; tokens *= 2) {
    const bool shares = tokens <= 64;  // a multiprocessor with another block
    // Barriers, and what the operands of eight warps have beside the rings.
    const int room = (shares ? 228 * 1024 / 2 - 1024 : 227 * 1024) - 2048 - (8 * 2048 + 256);
    for (int bytes = kBitmapHead; bytes <= kBitmapHead + 2 * kTileHeight * kTileWidth; bytes += 16) {
      const int tile = bytes + bytes_beyond(TileLayout::kBitmap);
      for (int parts = 1; parts <= 2; ++parts) {
        const RingSizes sizes{tokens * 128, 8 * tile, parts, false, !shares};
        CAPTURE(tokens);
        CAPTURE(tile);
        CAPTURE(parts);
        const Rings rings = choose_rings(sizes, room);
        REQUIRE(rings.x_stages > 0);
        REQUIRE(ends(acts_of(sizes, 9), rings));
      }
    }
  }
}

TEST_CASE("one stage of weights where two would leave too few blocks of x") {
  // 64 tokens of two parts in half of a multiprocessor: three blocks of x where four are needed.
  const RingSizes sizes{.x_bytes = 64 * 128, .weight_bytes = 8 * 5376, .parts = 2};
  const Rings rings = choose_rings(sizes, 115200);
  CHECK(rings.stages == 1);
  CHECK(rings.x_stages >= 4);
}
