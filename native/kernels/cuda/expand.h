// Starts the expansion of tiles to rows. Plain C++; the kernel is in expand.cuh.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "kernels/cuda/product.h"

namespace espalier::cuda {

// Some rows of the first of the matrices: n:32 or bitmap.
struct ExpandTask {
  DeviceTiles weights;
  int first_row = 0;  // a multiple of 16
  int rows = 0;
  // bf16 [rows up to a multiple of 16][cols up to a multiple of 128], 16-byte aligned: zeros beyond the matrix.
  uint16_t* out = nullptr;
};

// The weights must not be what the launch just before on the stream writes, see product.h. Errors: kUsage for what no
// kernel takes, kDevice if the launch failed.
Status expand(const ExpandTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
