#include <cuda_runtime.h>

#include <string>

#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/wide_dense.cuh"
#include "kernels/cuda/wide_tensors.h"

namespace espalier::cuda {
namespace {

// The driver's cuTensorMapEncodeTiled, which programs do not link with.
Result<decltype(&cuTensorMapEncodeTiled)> tensor_encoder() {
  static void* found = nullptr;
  static const cudaError_t error = [] {
    cudaDriverEntryPointQueryResult answer{};
    const cudaError_t asked =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &answer);
    return asked == cudaSuccess && answer != cudaDriverEntryPointSuccess ? cudaErrorSymbolNotFound : asked;
  }();
  ESPALIER_TRY(to_status(error, "looking for cuTensorMapEncodeTiled"));
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

Status check_encoded(CUresult result) {
  if (result == CUDA_SUCCESS) return Status::ok();
  return Status(Code::kDevice, "cuTensorMapEncodeTiled failed: error " + std::to_string(static_cast<int>(result)));
}

// Rows of so many parts, of which a copy takes 64 inputs of one part of `box` rows.
Status describe_parts(const uint16_t* data, int64_t cols, int64_t parts, int64_t rows, int box, CUtensorMap& out) {
  const auto encode = tensor_encoder();
  if (!encode.is_ok()) return encode.status();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(parts),
                              static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {sizes[0] * 2, sizes[0] * sizes[1] * 2};
  const cuuint32_t boxes[] = {kWideInputs, 1, static_cast<cuuint32_t>(box)};
  const cuuint32_t steps[] = {1, 1, 1};
  return check_encoded(encode.value()(&out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<uint16_t*>(data), sizes,
                                      strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

}  // namespace

Status describe_x(const Product& product, int box, CUtensorMap& out) {
  return describe_parts(product.x, product.weights.cols, product.parts, int64_t{product.groups} * product.tokens, box,
                        out);
}

Status describe_matrix(const uint16_t* matrix, int64_t rows, int64_t cols, CUtensorMap& out) {
  return describe_parts(matrix, cols, 1, rows, kWideRowTiles * kTileHeight, out);
}

Status describe_weights(const uint8_t* tiles, int64_t count, int row_tiles, int col_tiles, CUtensorMap& out) {
  const auto encode = tensor_encoder();
  if (!encode.is_ok()) return encode.status();
  const auto blocks = static_cast<cuuint64_t>(col_tiles) * (kTileWidth / kBlockInputs);
  const auto all_row_tiles = static_cast<cuuint64_t>(count) * static_cast<cuuint64_t>(row_tiles);
  const cuuint64_t sizes[] = {kBlockInputs, kTileHeight, all_row_tiles, blocks};
  const cuuint64_t strides[] = {kBlockInputs * 2, blocks * kBlockBytes, kBlockBytes};
  const cuuint32_t boxes[] = {kBlockInputs, kTileHeight, kWideRowTiles, kWideInputs / kBlockInputs};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  return check_encoded(encode.value()(&out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<uint8_t*>(tiles), sizes,
                                      strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_64B,
                                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

Status describe_y(const Product& product, int box, CUtensorMap& out) {
  const auto encode = tensor_encoder();
  if (!encode.is_ok()) return encode.status();
  const bool is_gated = product.output == OutputType::kGated;
  const bool is_float = product.output == OutputType::kF32;
  const auto outputs = static_cast<cuuint64_t>(is_gated ? product.weights.rows / 2 : product.weights.rows);
  const auto parts = static_cast<cuuint64_t>(is_gated ? product.parts : 1);
  const auto tokens = static_cast<cuuint64_t>(product.tokens);
  const cuuint64_t bytes = outputs * (is_float ? 4 : 2);
  const cuuint64_t sizes[] = {outputs, parts, tokens, static_cast<cuuint64_t>(product.groups)};
  const cuuint64_t strides[] = {bytes, parts * bytes, tokens * parts * bytes};
  const cuuint32_t boxes[] = {static_cast<cuuint32_t>(is_gated || is_float ? kStagedRows / 2 : kStagedRows), 1,
                              static_cast<cuuint32_t>(box), 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  return check_encoded(encode.value()(
      &out, is_float ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, product.y, sizes, strides,
      boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, is_gated ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

}  // namespace espalier::cuda
