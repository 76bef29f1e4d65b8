// How many bytes tiles take.
#pragma once

#include "kernels/cuda/code_tiles.h"
#include "kernels/cuda/tile_codec.h"
#include "kernels/cuda/tiled_weights.h"

namespace espalier::cuda {

// Bytes of a tile of any layout but the bitmap, whose tiles differ: 0. `n` is for n:32.
constexpr int fixed_tile_bytes(TileLayout layout, int n) {
  switch (layout) {
    case TileLayout::kDense: return kDenseBytes;
    case TileLayout::kTwoFour: return kTwoFourBytes;
    case TileLayout::kBalanced: return balanced_bytes(n);
    case TileLayout::kBitmap: return 0;
    case TileLayout::kDenseInt8: return kDenseCodesBytes;
    case TileLayout::kTwoFourInt8: return kTwoFourCodesBytes;
  }
  return 0;
}

// What is read beyond the end of a tile in shared memory, whatever lies there.
constexpr int bytes_beyond(TileLayout layout) {
  if (layout == TileLayout::kBalanced) return kQuadsBeyond * kSlotBytes;
  if (layout == TileLayout::kBitmap) return (kQuadsBeyond * kQuadBytes + 15) / 16 * 16;
  return 0;
}

}  // namespace espalier::cuda
