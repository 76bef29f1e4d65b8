// What the lanes of a warp do with matrices together; fragments lie among them as PTX says for the instruction of the
// name.
#pragma once

#include <vector_types.h>

#include <bit>

#include "shared.h"

namespace emulated {

inline float from_bf16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

// Four 8 × 8 matrices of 16 bits, whose rows are where the lanes say.
uint4 load_matrices(uint32_t row, bool turned);
void store_matrices_turned(uint32_t to, const uint32_t (&from)[4]);

void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_sparse_m16n8k32(float (&c)[4], const uint4& a, const uint4& b, uint32_t positions, int selector);
void mma_m16n8k8(double (&c)[4], const double (&a)[4], double b0, double b1);

// The 16 rows of a warp's A operand, of k columns.
struct Rows16 {
  int k;
  float at[16][32];
};
// Of registers of each lane: k = 16, and 32 where two in four are stored.
Rows16 rows_of(const uint32_t (&a)[kLanes][4]);
Rows16 sparse_rows_of(const uint32_t (&a)[kLanes][4], const uint32_t (&positions)[kLanes], int selector);

}  // namespace emulated
