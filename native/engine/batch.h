// A ragged batch: rows (tokens) of several sequences, each a slice with its place in a paged KV cache.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "engine/spec.h"
#include "kernels/cpu/kernels.h"

namespace espalier {

// `count` consecutive tokens of one sequence, rows [first_row, first_row + count) of the batch, at positions from
// `position` on. The sequence's tokens 0 … position − 1 are in the cache already. blocks[i] holds positions
// [i · kKvBlock, (i + 1) · kKvBlock).
struct Slice {
  int64_t first_row = 0;
  int64_t count = 0;
  int64_t position = 0;
  std::vector<int32_t> blocks;
};

struct Batch {
  int64_t rows = 0;
  std::vector<Slice> slices;
};

// Cosines and sines of the batch's rows, computed once a step for all layers: [rows][head_dim / 2].
struct RopeRows {
  int64_t half = 0;
  std::vector<float> cosines;
  std::vector<float> sines;

  static RopeRows compute(const RopeSpec& rope, const Batch& batch);
};

// Keys and values of one layer: blocks of kKvBlock tokens.
class KvLayer {
 public:
  // False if there is no memory.
  bool allocate(int64_t blocks, int kv_heads, int head_dim, KvType type = KvType::kF32);

  KvType type() const { return type_; }
  // A KV head's part of block 0, as kernels.h has it.
  uint8_t* keys(int64_t head) { return memory_.data() + head * head_bytes_; }
  uint8_t* values(int64_t head) { return keys(head) + memory_.size() / 2; }
  // Bytes from one block to the next.
  int64_t block_stride() const { return block_bytes_; }
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }

 private:
  KvType type_ = KvType::kF32;
  int64_t head_bytes_ = 0;
  int64_t block_bytes_ = 0;
  // Keys, then values, [block][kv_head][kv_block_bytes]. Together they reach the size of a huge page sooner, without
  // which every block costs a translation of its address.
  AlignedBuffer<uint8_t> memory_;
};

}  // namespace espalier
