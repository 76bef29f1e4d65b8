// RIA's scores of a matrix: score_relative of prune/score.h on the device, with the same bits.
#pragma once

#include <cstdint>

#include "core/status.h"

struct CUstream_st;

namespace espalier::cuda {

// Pointers are to device memory; an error is that of the launch.
struct RelativeTask {
  float* weights = nullptr;  // [rows][cols], finite; the scores take their place
  int64_t rows = 0;
  int64_t cols = 0;
  const double* lengths = nullptr;  // [cols]: relative_lengths of prune/score.h
  double* shares = nullptr;         // [cols + rows], work space
};
Status score_relative(const RelativeTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
