// Boxes of tensors that the copy engine moves, and what describes tensors.
#pragma once

#include <cuda.h>

#include <initializer_list>

#include "shared.h"

namespace emulated {

// Takes the place of the driver's.
CUresult encode_tensor_map(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                           const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                           const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                           CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

// To the same place of all blocks of the cluster whose bit is set, and towards the barriers there.
void tensor_load(uint32_t blocks, uint32_t to, const void* tensor, std::initializer_list<int> at, uint32_t barrier);
void tensor_store(const void* tensor, std::initializer_list<int> at, uint32_t from);

}  // namespace emulated
