// How the warps of a product of few tokens get at x. Both kinds have:
//   Inputs(args, room, lane)     `room` is the warp's own shared memory, room_bytes(rows of x) of it
//   begin(group, col)            before an item, whose first tile is the one of column `col`
//   load(col, next)              the inputs of tile `col`; the item's next one is `next`, or it has none there
//   operand<kQuarter>(block)     the B operand of 32 of them and eight rows
//   release(next)                when all lanes have read their operands
#pragma once

#include "kernels/cuda/product_args.h"
#include "kernels/cuda/ptx/async.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {

// Where row `row` of a group lies.
__device__ __forceinline__ const uint16_t* input_row(const ProductArgs& args, int group, int row) {
  const int last = (args.tokens << args.two_parts) - 1;
  const int token = group * args.tokens + (min(row, last) >> args.two_parts);
  const int input = args.inputs != nullptr ? max(args.inputs[token], 0) : token;
  return args.x + static_cast<int64_t>((input << args.two_parts) + (min(row, last) & args.two_parts)) * args.cols;
}

// Into registers, those of a tile when those of the one before have been used: for layouts whose lanes want
// neighbouring inputs.
template <class Tile, int kBlockCount>
class LoadedInputs {
 public:
  static constexpr int kBlocks = kBlockCount;
  __host__ __device__ static constexpr int room_bytes(int) { return 0; }

  __device__ LoadedInputs(const ProductArgs& args, uint32_t, int lane) : args_(args), g_(lane / 4), t_(lane % 4) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) whole_[b] = ptx::keep(is_used(b) ? args.whole_col_tiles : 0);
  }

  __device__ __forceinline__ void begin(int group, int col) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      from_[b] = ptx::keep(input_row(args_, group, b * 8 + g_) + Tile::input(0, t_) + col * kTileWidth);
    }
    load_inside(col);
  }
  __device__ __forceinline__ void load(int, int next) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      ptx::advance(from_[b], args_.split * kTileWidth);
      loads_[b] = next < static_cast<int>(whole_[b]);
    }
  }
  template <int kQuarter>
  __device__ __forceinline__ uint4 operand(int block) const {
    return Tile::arrange(loaded_[kQuarter][block], t_);
  }
  template <int kQuarter>
  __device__ __forceinline__ void multiplied() {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if (loads_[b]) loaded_[kQuarter][b] = __ldg(reinterpret_cast<const uint4*>(from_[b] + Tile::input(kQuarter, 0)));
    }
  }
  __device__ __forceinline__ void release(int next) {
    if (next >= args_.whole_col_tiles && next < args_.col_tiles) load_inside(next);
  }

 private:
  // Whether there is a row for the lane. What others hold gives columns of sums that are not stored.
  __device__ bool is_used(int block) const { return block * 8 + g_ < (args_.tokens << args_.two_parts); }
  // Zeros where a tile has more inputs than there are.
  __device__ __forceinline__ void load_inside(int col) {
    const int first = col * kTileWidth;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        loaded_[i][b] = uint4{};
        if (is_used(b) && first + Tile::input(i, t_) < args_.cols) {
          loaded_[i][b] = __ldg(reinterpret_cast<const uint4*>(from_[b] + Tile::input(i, 0)));
        }
      }
    }
  }

  const ProductArgs& args_;
  const int g_;
  const int t_;
  const uint16_t* from_[kBlocks];  // the lane's of the tile that is loaded next, or was last
  uint4 loaded_[4][kBlocks];
  uint32_t whole_[kBlocks];  // tiles of which the lane loads all of its inputs
  bool loads_[kBlocks];      // whether the next one is of these
};

// Through shared memory, where the loads of matrix fragments put them in the tensor cores' order, and with two buffers
// a tile ahead. For layouts that want inputs in their own order. Sixteen lanes copy a row of a tile; 16 bytes lie where
// those of eight rows that are loaded together are in different banks. Rows beyond the last are the last again: they
// give columns of sums that are not stored.
template <int kBlockCount, int kBuffers>
class StagedInputs {
 public:
  static constexpr int kBlocks = kBlockCount;
  __host__ __device__ static constexpr int room_bytes(int rows) { return kBuffers * rows * kRowBytes; }

  __device__ StagedInputs(const ProductArgs& args, uint32_t room, int lane)
      : args_(args),
        rows_in_use_(args.tokens << args.two_parts),
        input_(lane % kLanes * 8),
        row_(lane / kLanes),
        to_(room + row_ * kRowBytes + place(row_, lane % kLanes)) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int row = min(b * 8 + lane % 8, rows_in_use_ - 1);
      from_[b] = room + row * kRowBytes + place(row, lane / 8);
    }
  }

  __device__ __forceinline__ void begin(int group, int col) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) rows_[i] = input_row(args_, group, i * kStep + row_) + input_;
    copy(col, buffer_);
  }
  __device__ __forceinline__ void load(int, int next) {
    if constexpr (kBuffers == 2) {
      copy(next, buffer_ ^ 1);
      ptx::async_wait<1>();
    } else {
      ptx::async_wait<0>();
    }
    // Other lanes' copies, too.
    __syncwarp();
  }
  // Columns of 8 inputs are 16 bytes apart, but for the bits that place() turns around.
  template <int kQuarter>
  __device__ __forceinline__ uint4 operand(int block) const {
    return ptx::load_matrices((from_[block] + buffer_ * rows_in_use_ * kRowBytes) ^ (kQuarter * 64));
  }
  template <int kQuarter>
  __device__ __forceinline__ void multiplied() {}
  __device__ __forceinline__ void release(int next) {
    if constexpr (kBuffers == 2) {
      buffer_ ^= 1;
    } else {
      copy(next, 0);
    }
  }

 private:
  static constexpr int kRowBytes = kTileWidth * 2;
  static constexpr int kLanes = kRowBytes / 16;
  static constexpr int kStep = 32 / kLanes;  // rows that are copied at once
  static constexpr int kCopies = kBlocks * 8 / kStep;

  // Of 16 bytes in a row.
  __device__ static int place(int row, int column) { return (column ^ row % 8) * 16; }

  __device__ __forceinline__ void copy(int col, int buffer) {
    if (col < args_.col_tiles) {
      const int first = col * kTileWidth;
      const bool is_inside = first + input_ < args_.cols;
      const int64_t offset = is_inside ? first : 0;
      const uint32_t to = to_ + buffer * rows_in_use_ * kRowBytes;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        if (i * kStep + row_ >= rows_in_use_) continue;
        ptx::async_copy_cached_16((to ^ (i * kStep % 8 * 16)) + i * kStep * kRowBytes, rows_[i] + offset,
                                  is_inside ? 16 : 0);
      }
    }
    ptx::async_commit();
  }

  const ProductArgs& args_;
  const int rows_in_use_;
  const int input_;
  const int row_;
  const uint32_t to_;
  uint32_t from_[kBlocks];
  const uint16_t* rows_[kCopies];
  int buffer_ = 0;
};

}  // namespace espalier::cuda
