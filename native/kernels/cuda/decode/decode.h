// All layers of a decode step of one token as one kernel, whose blocks wait for each other between its stages. What
// separate kernels lose to their beginnings and ends goes, and a warp of each block fetches the weights that come next
// while the others wait: with few active weights a layer that waiting is half of a step. Plain C++; pointers are to
// device memory.
#pragma once

#include <cstdint>
#include <span>

#include "core/status.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/divisor.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/routing.h"

struct CUstream_st;

namespace espalier::cuda {

// A layer; null where it has no such thing.
struct DecodeLayer {
  const uint8_t* tiles[4];  // of the products, see DecodeProducts
  const float* attention_norm;
  const float* feed_forward_norm;
  const float* qkv_bias;
  const float* output_bias;
  const float* q_norm;
  const float* k_norm;
  bool q_norm_whole;  // see HeadsTask
  bool k_norm_whole;
  float scale;
  float clip;
  void* keys;
  void* values;
  const void* router;  // [experts' rows][hidden]
  const float* correction_bias;
  const float* skip_below;
  const int32_t* expert_of_row;
};

// The products of a layer, of the same shapes in all of them: Wq, Wk and Wv; Wo; gate and up of all experts, eight rows
// of each in turns; down of all experts.
enum DecodeProducts : int { kQkv, kOutput, kGateUp, kDown, kDecodeProducts };

struct DecodeProduct {
  TileLayout layout = TileLayout::kDense;
  int n = 0;  // see TiledWeights
  int rows = 0;
  int row_tiles = 0;
  int col_tiles = 0;
  // plan_decode sets:
  int tile_bytes = 0;
  int split = 1;       // warps that share a row tile
  Divisor by_columns;  // by col_tiles
};

// What blocks tell each other in a layer, as words (words.cuh).
struct DecodeWords {
  uint32_t* qkv = nullptr;       // [row tiles of kQkv · 16]
  uint32_t* partials = nullptr;  // [heads][multiprocessors / kv_heads][head_dim + 4]
  uint32_t* mixed = nullptr;     // [heads · head_dim]
  uint32_t* output = nullptr;    // [row tiles of kOutput · 16]
  uint32_t* logits = nullptr;    // [routing.rows]
  uint32_t* blocks = nullptr;    // [multiprocessors]: a block has come to the router
  uint32_t* gated = nullptr;     // [top_k][row tiles of kGateUp · 8]
  uint32_t* down = nullptr;      // [row tiles of kDown · 16]
};

// Bytes of the parts of a block's shared memory.
struct DecodeRoom {
  int x = 0;
  int scratch = 0;
  int ring = 0;  // of a warp
};

struct DecodeTask {
  int layers = 0;
  const DecodeLayer* of_layers = nullptr;
  DecodeProduct products[kDecodeProducts];
  int hidden = 0;
  int parts = 1;
  float epsilon = 0;
  HeadShape heads;
  int window = 0;  // see AttendTask
  bool kv_is_bf16 = false;
  // What all layers' routers have in common; its pointers are not used.
  RouteTask routing;
  bool router_is_bf16 = true;

  // Of the step.
  RowPlaces places;                // one row
  const float* cosines = nullptr;  // [head_dim / 2]
  const float* sines = nullptr;
  float* residual = nullptr;  // [hidden]: the token's embedding, then the last layer's hidden states

  DecodeWords words;                // the first copy
  int64_t copy_size = 0;            // words of a copy
  uint32_t* layers_done = nullptr;  // since the words were zeros

  DecodeRoom room;  // launch_decode's
};

// Bytes of the memory that blocks tell each other things in, for a device of so many multiprocessors: zeros at first,
// and nobody else's while there are launches. place_decode lets the task's pointers point into it.
int64_t decode_bytes(const DecodeTask& task, int multiprocessors);
void place_decode(DecodeTask& task, void* memory, int multiprocessors);

// Completes a task whose shapes are set with how it uses the current device. False where there is no such kernel for
// it: its layouts, heads or widths are not among those that fit.
bool plan_decode(DecodeTask& task);

// Starts all layers of a step. The task is planned and placed. Nothing is allocated; an error is that of the launch.
Status launch_decode(const DecodeTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
