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

Result<TiledWeights> tile_codes(ThreadPool& pool, TileLayout layout, const PackedMatrix& matrix) {
  if (matrix.format().values != Values::kInt8) {
    return Status(Code::kUsage, matrix.format().name() + " weights have no codes of 8 bits");
  }
  std::vector<int8_t> codes(static_cast<size_t>(matrix.rows() * matrix.cols()));
  std::vector<uint16_t> scales(static_cast<size_t>(matrix.rows() * matrix.groups()));
  matrix.unpack_codes(pool, codes.data(), scales.data());
  const CodeMatrix source(matrix.rows(), matrix.cols(), codes.data(), scales.data());
  return tile_codes(pool, layout, std::span(&source, 1));
}

}  // namespace espalier::cuda
