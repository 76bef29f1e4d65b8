// Products of warpgroups, which run on until they are waited for. Each warp has its 16 rows.
#pragma once

#include "matrices.h"

namespace emulated {

// `sums`: of the lane, 16 rows by `tokens`. Operands in shared memory are what their descriptors say: columns of inputs
// by rows of 32, 64 or 128 bytes, swizzled.
void warpgroup_product(float* sums, int tokens, const uint32_t (&a)[4], uint64_t b);
void warpgroup_product(float* sums, int tokens, uint64_t a, uint64_t b);
void warpgroup_sparse_product(float* sums, int tokens, const uint4& a, uint32_t positions, int selector, uint64_t b);
void warpgroup_commit();
void warpgroup_wait(size_t left);

}  // namespace emulated
