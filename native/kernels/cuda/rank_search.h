// The value at a rank among weights' scores, in memory of the device: prune/rank_search.h there.
#pragma once

#include <cstdint>

#include "core/status.h"

struct CUstream_st;

namespace espalier::cuda {

// Bytes of work space, zeros at first and after every search.
constexpr int64_t kRankWork = 2048 * 4 + 16;

// *value = the score at `rank` (from 0, ascending; below rows · cols, which is below 2³²) of
// |weights[r · stride + c]| · scales[c], none NaN; −1, below every score, for rank −1.
struct RankTask {
  const float* weights = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  const float* scales = nullptr;  // [cols], not negative; without: 1
  int64_t rank = 0;
  void* work = nullptr;  // 8-byte aligned
  float* value = nullptr;
};
Status select_rank(const RankTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
