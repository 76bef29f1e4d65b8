// What products of many tokens tell the copy engine of their operands.
#pragma once

#include <cuda.h>

#include "core/status.h"
#include "kernels/cuda/product.h"

namespace espalier::cuda {

// x as a tensor of [rows][parts][cols], of which a copy takes 64 inputs of one part of `box` rows.
Status describe_x(const Product& product, int box, CUtensorMap& out);

// The tiles of `count` dense matrices as a tensor of [blocks of 32 inputs][row tiles][16 rows][32 inputs], of which a
// copy takes two blocks of 8 row tiles.
Status describe_weights(const uint8_t* tiles, int64_t count, int row_tiles, int col_tiles, CUtensorMap& out);

// A matrix of bf16 rows, of which a copy takes 64 inputs of 128 rows.
Status describe_matrix(const uint16_t* matrix, int64_t rows, int64_t cols, CUtensorMap& out);

// y as a tensor of [groups][tokens][parts][outputs], of which a copy brings 128 bytes, gated 64, of `box` tokens.
Status describe_y(const Product& product, int box, CUtensorMap& out);

}  // namespace espalier::cuda
