// Matrices to measure products with.
#pragma once

#include <cstdint>

#include "sparse/packed_matrix.h"

namespace espalier {

// Packs normally distributed weights that suit the format: all non-zero for dense, each zero with probability
// `sparsity` for bitmap, n random ones of each m for n:m. A few tile rows repeat over and over, so that a large matrix
// is quickly made; a product takes no notice. The same seed gives the same matrix. Errors as those of
// PackedMatrix::pack.
Result<PackedMatrix> random_matrix(ThreadPool& pool, Format format, int64_t rows, int64_t cols, double sparsity,
                                   uint32_t seed);

}  // namespace espalier
