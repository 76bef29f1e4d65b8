// Products on the GPU: y = W x, of one matrix or of the experts that a router chose, in one launch. Plain C++.
//
// Of few tokens (product_*.cu), a product is bound by the bytes of the weights. Each warp walks its own tiles through a
// ring of buffers in shared memory that bulk copies fill, and multiplies on the tensor cores even for one token: that
// leaves arithmetic out of the account, and 7 further tokens cost nothing. Of many (wide.cu), x is shared by the rows
// of a block, and the tensor cores are what counts.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "kernels/cuda/tiled_weights.h"

struct CUstream_st;

namespace espalier::cuda {

// TiledWeights whose `tiles` and `starts` are in device memory.
struct DeviceTiles {
  TileLayout layout = TileLayout::kDense;
  int64_t count = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int n = 0;
  int most_tile_bytes = 0;
  const uint8_t* tiles = nullptr;
  const uint32_t* starts = nullptr;
  int64_t tile_bytes = 0;  // of `tiles`
};

// The same weights where `tiles` and `starts` of the host were copied to.
DeviceTiles describe_tiles(const TiledWeights& host, const uint8_t* tiles, const uint32_t* starts);

// kGated: of a matrix whose rows 16i … 16i + 7 are those of a gate and 16i + 8 … 16i + 15 those of an up projection,
// silu(gate) ⊙ up, as bf16 rows of as many parts as x has: [groups][tokens][parts][rows / 2], rows / 2 a multiple
// of 32.
enum class OutputType : uint8_t { kBf16, kF32, kGated };

// The weights must not be what the launch just before on the stream writes: a product begins to fetch them while that
// one still runs, and waits for it before it touches anything else.
//
// For each group g and each token n of it: y[g · tokens + n] = W[experts[g]] · x[inputs[g · tokens + n]]. Pointers are
// to device memory. Groups whose expert is negative are left out, tokens whose input is negative are not to be used.
//
// A row of x is the sum of `parts` bf16 rows. Of two, one the float rounded to bf16 and one what that left, float32
// activations keep 16 bits of their mantissa; on the tensor cores the second costs nothing while tokens are few.
struct Product {
  DeviceTiles weights;
  int groups = 1;
  int tokens = 1;
  // bf16 [inputs][parts][cols], 16-byte aligned.
  const uint16_t* x = nullptr;
  // [groups] matrices; without: group g uses matrix g, or all the only one.
  const int32_t* experts = nullptr;
  // Whether `experts` was written before the previous launch on the stream, not by it: then weights are fetched while
  // that one still runs.
  bool experts_settled = false;
  // [groups][tokens] rows of x; without: in order.
  const int32_t* inputs = nullptr;
  int parts = 1;  // or 2
  // [groups][tokens][rows], but see OutputType.
  void* y = nullptr;
  OutputType output = OutputType::kBf16;
  // Weights that a later launch reads: brought into the L2 cache when this one has read its own.
  const DeviceTiles* next = nullptr;
};

// How a launch uses the GPU; 0 lets the launcher choose. The result's bits depend on `split` alone.
struct ProductTuning {
  // Warps that share 16 rows (of some layouts more), each with a part of the inputs.
  int split = 0;
  // Tiles that a warp has under way.
  int stages = 0;
};

// The most rows of bf16, tokens · parts, of a group of a product of few tokens.
inline constexpr int kMostFewRows = 16;

// Starts a product of few tokens. Errors: kUsage for what no kernel takes, kDevice if the launch failed. Nothing is
// allocated.
Status launch_product(const Product& product, CUstream_st* stream, const ProductTuning& tuning = {});

// How a launch for many tokens uses the GPU; 0 lets the launcher choose. The result's bits depend on how rows are
// split, which the launcher may do differently for the last ones.
struct WideTuning {
  // Blocks of a cluster, up to 8, that share the inputs of 128 rows.
  int split = 0;
  // Blocks of a cluster that take different rows and fetch x together: 1, 2 or 4.
  int mates = 0;
};

// Whether the device has what products of many tokens are made of: the tensor cores of compute capability 9.0.
bool has_wide_products(int device);

// Starts a product of any number of tokens. `inputs` must be null: rows of x are gathered first. What `next` names is
// not fetched. Errors: kUsage for what no kernel takes, kDevice if the launch failed. Nothing is allocated.
Status launch_wide_product(const Product& product, CUstream_st* stream, const WideTuning& tuning = {});

// Starts a product by one matrix of `product.tokens` rows of x in order, many tokens or few: as launch_wide_product
// where these do not fit a group of few and the device has_wide_products(), else in groups. x and y have room for whole
// groups, of kMostFewRows / parts tokens; no `experts`, no `inputs`.
Status launch_rows(const Product& product, bool has_wide, CUstream_st* stream);

// What launch_expanded_product needs beside its operands. Launches with the same room run one after the other.
struct ExpansionRoom {
  // 2048 values a tile, 128-byte aligned; overwritten by the matrix, as rows of whole tiles.
  uint16_t* expanded = nullptr;
  // expansion_words(tiles), zero before the first launch; its own afterwards.
  uint32_t* progress = nullptr;
  int64_t tiles = 0;
};
constexpr int64_t expansion_words(int64_t tiles) { return 32 + tiles; }
// Tiles of a matrix.
int64_t expansion_tiles(const DeviceTiles& weights);

// Whether launch_expanded_product takes a product: by one n:32 or bitmap matrix, in order (no `experts`, no `inputs`).
bool takes_expanded(const Product& product);
// What a block of such a product takes at a time.
inline constexpr int kExpandedItemRows = 128;
inline constexpr int kExpandedItemTokens = 256;

// The same product where tokens are so many that weights would be expanded several times: some warps write the dense
// matrix to memory, the others multiply by what is there already. Only the first `rows` of y are computed (a multiple
// of 128, or all), but the whole matrix is expanded: who comes next finds it. Errors: kUsage for what it does not take
// and if there is too little room, kDevice. Nothing is allocated.
Status launch_expanded_product(const Product& product, int rows, const ExpansionRoom& room, CUstream_st* stream);

}  // namespace espalier::cuda
