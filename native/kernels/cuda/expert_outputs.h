// What a survey takes of experts' outputs, in float64; each sum has an order of its own. Pointers are to device memory;
// an error is that of the launch.
#pragma once

#include <cstdint>

#include "core/status.h"

struct CUstream_st;

namespace espalier::cuda {

// squares[r] = Σ x_rj².
struct RowSquaresTask {
  const float* x = nullptr;  // [rows][cols]
  int64_t rows = 0;
  int64_t cols = 0;
  double* squares = nullptr;
};
Status row_squares(const RowSquaresTask& task, CUstream_st* stream);

// The products of the outputs of any two experts for the same token.
struct OutputGramsTask {
  const float* outputs = nullptr;  // [experts][tokens][hidden]
  int64_t experts = 0;
  int64_t tokens = 0;
  int64_t hidden = 0;
  double* grams = nullptr;  // [tokens][experts][experts]
};
Status output_grams(const OutputGramsTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
