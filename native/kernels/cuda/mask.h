// Which weights stay under a budget, by |W| · scale: prune/mask.h on the device, with the same choices of the same
// weights.
#pragma once

#include <cstdint>

#include "core/status.h"

struct CUstream_st;

namespace espalier::cuda {

inline constexpr int64_t kMostMaskedCols = 49152;  // whose scores fit into shared memory

// Pointers are to device memory; an error is that of the launch.
struct MaskTask {
  const float* weights = nullptr;  // [rows][cols]
  int64_t rows = 0;
  int64_t cols = 0;               // at most kMostMaskedCols
  const float* scales = nullptr;  // [cols], not negative; without: 1
  uint32_t* kept = nullptr;       // [rows][mask_words(cols)]: bit c % 32 of word c / 32 is column c
};
constexpr int64_t mask_words(int64_t cols) { return (cols + 31) / 32; }

// Of each row the `zeros` smallest go; of equal scores the lower column goes first.
Status mask_rows(const MaskTask& task, int64_t zeros, CUstream_st* stream);
// Of every `group` consecutive columns `keep` stay, likewise; group divides cols.
Status mask_groups(const MaskTask& task, int32_t keep, int32_t group, CUstream_st* stream);
// Scores up to and including *threshold go.
Status mask_threshold(const MaskTask& task, const float* threshold, CUstream_st* stream);

}  // namespace espalier::cuda
