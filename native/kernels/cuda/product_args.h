// What the kernels of products are told.
#pragma once

#include "kernels/cuda/divisor.h"
#include "kernels/cuda/product.h"

namespace espalier::cuda {

struct ProductArgs {
  const uint8_t* tiles;
  const uint32_t* starts;
  const uint16_t* x;
  const int32_t* experts;
  const int32_t* inputs;
  void* y;
  int rows;
  int cols;
  int row_tiles;
  int col_tiles;
  int whole_col_tiles;  // of 128 inputs
  int row_blocks;       // items of a group
  int items;
  int item_step;   // between two items of a team
  int block_step;  // items between the first ones of two blocks
  int team_step;   // and of two teams of a block
  int tokens;
  int two_parts;  // whether a row of x is the sum of two, 0 or 1
  int split;
  Divisor by_split;
  Divisor by_row_blocks;
  int stages;
  int stage_bytes;      // of one tile
  int n;                // n:32
  const uint8_t* next;  // what the last products of the launch bring into the L2 cache, or nullptr
  int64_t next_bytes;   // a multiple of 16
  bool early;           // weights may be fetched while the previous kernel runs
  bool one_matrix;      // all groups use the same, unless `experts` says otherwise
  OutputType output;
};

}  // namespace espalier::cuda
