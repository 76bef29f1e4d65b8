// Weights of a checkpoint as packed matrices: packed now, or mapped from a file where they were packed before.
#pragma once

#include "core/thread_pool.h"
#include "engine/weight_policy.h"
#include "engine/weight_ref.h"
#include "sparse/packed_matrix.h"

namespace espalier {

// Packs elements that come from a checkpoint of type `dtype`: in the format that suits their zeros, if the policy
// allows it and this machine gains from it, else dense.
Result<PackedMatrix> pack_source(ThreadPool& pool, WeightPolicy policy, DType dtype, const MatrixSource& source);

// Reads and packs a weight that is stored as its elements.
Result<PackedMatrix> pack_weight(ThreadPool& pool, WeightPolicy policy, const WeightRef& ref);

// Bytes of the block that pack_weight would make.
Result<int64_t> measure_weight(ThreadPool& pool, WeightPolicy policy, const WeightRef& ref);

// A weight that is stored packed: copied from its file into memory of large pages, in which decode runs faster than in
// the small pages of a mapping, or with `policy.mapped` used where it is mapped. Then the file must keep its size while
// the matrix lives, as touching a page that another process cut off is a fault. Where this machine has no product for
// its format, or the policy wants none that is sparse, it is expanded to dense. kMismatch if it is not of the shape
// that the reference gives; kConfig and kSparse as PackedMatrix::from_block.
Result<PackedMatrix> load_packed(ThreadPool& pool, WeightPolicy policy, const WeightRef& ref);

// The elements of a packed matrix, row-major in the type of its source: what was packed for bf16 and f32, the weights
// that int8 and int4 stand for, rounded to that type, otherwise.
std::vector<uint8_t> unpack_to_source(ThreadPool& pool, const PackedMatrix& matrix);

}  // namespace espalier
