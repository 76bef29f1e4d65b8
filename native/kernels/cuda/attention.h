// Attention over a paged KV cache on the GPU. Pointers are to device memory; nothing is allocated; an error is that of
// the launch.
//
// A layer's cache is two arrays of blocks of kKvTokens tokens: keys [block][kv_head][head_dim][token], so that a thread
// scores a token with loads that it shares with its neighbours, and values [block][kv_head][token][head_dim].
#pragma once

#include <cstdint>

#include "core/status.h"
#include "kernels/cuda/parts.h"

struct CUstream_st;

namespace espalier::cuda {

inline constexpr int kKvTokens = 16;
// Keys that a block of threads takes at a time.
inline constexpr int kAttendChunk = 32;
// The most blocks of threads that share a row's keys.
inline constexpr int kMostSplits = 64;
// The most elements of a head.
inline constexpr int kMostHeadDim = 256;

struct KvCache {
  void* keys = nullptr;
  void* values = nullptr;
  bool is_bf16 = false;  // else float
};

// Where the rows of a batch stand in their sequences.
struct RowPlaces {
  int rows = 0;
  const int32_t* positions = nullptr;
  const int32_t* tables = nullptr;  // [rows]: where the row's block table begins in `blocks`
  const int32_t* blocks = nullptr;
};

struct HeadShape {
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;  // even, at most kMostHeadDim
};

// The way of queries, keys and values from their products: bias, norm, clamp, rotation; keys and values into the cache.
struct HeadsTask {
  RowPlaces places;
  HeadShape shape;
  const float* source = nullptr;  // [rows][(heads + 2 · kv_heads) · head_dim]: queries, keys, values
  const float* bias = nullptr;    // as long as a row of it, or nullptr
  const float* q_norm = nullptr;  // RMSNorm of each head, or of all heads as one row, or nullptr
  const float* k_norm = nullptr;
  bool q_norm_whole = false;  // of all heads as one row
  bool k_norm_whole = false;
  float epsilon = 0;
  float clip = 0;                  // clamp to ± clip; 0: no clamp
  const float* cosines = nullptr;  // [rows][head_dim / 2]
  const float* sines = nullptr;
  float* queries = nullptr;  // [rows][heads · head_dim]
  KvCache cache;
};
Status prepare_heads(const HeadsTask& task, CUstream_st* stream);

struct AttendTask {
  RowPlaces places;
  HeadShape shape;
  float scale = 1;
  int window = 0;  // a query sees keys at distances 0 … window − 1; 0: all
  KvCache cache;
  const float* queries = nullptr;
  PartRows out;  // of rows of heads · head_dim
  // Blocks of threads that share the keys of a row and KV head, each with `split_chunks` chunks of them; `partials`
  // holds what they find (attend_partial_floats). 1: one block takes all of them.
  int splits = 1;
  int split_chunks = 1;
  float* partials = nullptr;
};
constexpr int64_t attend_partial_floats(const HeadShape& shape, int64_t rows, int64_t splits) {
  return rows * splits * shape.heads * (shape.head_dim + 2);
}
Status attend(const AttendTask& task, CUstream_st* stream);

// The most rows of a run.
inline constexpr int kMostRun = 64;

// The same for rows of which many stand one after the other in their sequences, as those of prompts: on the tensor
// cores, from keys and values that the rows of a run share. Floats enter as two bf16 parts, which keep 16 bits.
struct AttendRunsTask {
  AttendTask rows;  // but not the splits
  int runs = 0;
  const int32_t* firsts = nullptr;  // [runs]: the first row
  const int32_t* counts = nullptr;  // [runs]: rows, 1 … kMostRun, of one sequence at positions that follow each other
};
// Whether it takes heads of that shape: of a multiple of 4 elements.
constexpr bool can_attend_runs(const HeadShape& shape) { return shape.head_dim % 4 == 0; }
Status attend_runs(const AttendRunsTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
