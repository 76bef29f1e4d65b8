// From the CPU's layout to the GPU's.
#include <vector>

#include "kernels/cuda/tiled_weights.h"
#include "sparse/packed_matrix.h"

namespace espalier::cuda {

Result<TiledWeights> tile_weights(ThreadPool& pool, TileLayout layout, const PackedMatrix& matrix, int n) {
  std::vector<float> values(static_cast<size_t>(matrix.rows() * matrix.cols()));
  matrix.unpack(pool, values.data());
  const MatrixSource source(DType::kF32, matrix.rows(), matrix.cols(), values.data());
  return tile_weights(pool, layout, std::span(&source, 1), n);
}

}  // namespace espalier::cuda
