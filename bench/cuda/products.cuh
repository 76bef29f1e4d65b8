// What measurements of products share: random weights with the zeros of a pattern, packed on the device, and cuBLAS.
#pragma once

#include <cublas_v2.h>

#include <random>
#include <string>

#include "harness.cuh"
#include "kernels/cuda/product.h"

namespace bench {

using namespace espalier;
using namespace espalier::cuda;

// One matrix, or `routed` of the experts of a layer.
struct Shape {
  int rows;
  int cols;
  int routed;
};

struct Pattern {
  TileLayout layout;
  double density;
  int n;
  std::string name;
  // Blocks of 4 × 32 almost full and almost empty in turns: lanes of a warp with very different numbers of values.
  bool uneven = false;
};

inline const Pattern kTwoFour{TileLayout::kTwoFour, 0.5, 0, "2:4"};
inline const Pattern kBalanced{TileLayout::kBalanced, 0.5, 16, "16:32"};
inline const Pattern kBitmap50{TileLayout::kBitmap, 0.5, 0, "bitmap 50 %"};
inline const Pattern kUneven{TileLayout::kBitmap, 0.5, 0, "uneven bitmap", true};
inline const Pattern kBitmap70{TileLayout::kBitmap, 0.3, 0, "bitmap 70 %"};

inline const Pattern kTwoFourInt8{TileLayout::kTwoFourInt8, 0.5, 0, "2:4 int8"};
inline const Pattern kDenseInt8{TileLayout::kDenseInt8, 1.0, 0, "dense int8"};

inline unsigned g_seed = 0;
inline ThreadPool& pool() {
  static ThreadPool threads(0);
  return threads;
}

inline std::vector<uint16_t> random_bits(size_t count) {
  std::vector<uint16_t> values(count);
  const unsigned seed = ++g_seed;
  pool().parallel_for(static_cast<int64_t>((count + 65535) / 65536), 1, [&](int64_t block, int64_t) {
    std::minstd_rand random(seed * 7919u + static_cast<unsigned>(block) * 104729u + 1u);
    for (size_t i = static_cast<size_t>(block) * 65536; i < std::min(count, static_cast<size_t>(block + 1) * 65536);
         ++i) {
      float sum = -2.0f;
      for (int j = 0; j < 4; ++j) sum += static_cast<float>(random()) / 2147483647.0f;
      values[i] = float_to_bf16(sum == 0 ? 0.5f : sum);
    }
  });
  return values;
}

// The scale of a code, a power of two, so that bf16 holds what codes stand for.
inline float code_scale(int64_t row, int64_t col) {
  return std::ldexp(1.0f, -6 - static_cast<int>((row + col / kGroup) % 3));
}

// Random weights with the zeros of a pattern, where it is of codes in their grid: bf16 bits, row after row.
inline std::vector<uint16_t> random_weights(const Pattern& pattern, int64_t rows, int64_t cols) {
  std::vector<uint16_t> values = random_bits(static_cast<size_t>(rows * cols));
  const unsigned seed = ++g_seed;
  pool().parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    std::minstd_rand random(seed * 6151u + static_cast<unsigned>(begin) + 1u);
    std::uniform_real_distribution<float> uniform;
    for (int64_t r = begin; r < end; ++r) {
      uint16_t* row = values.data() + r * cols;
      const bool two_four = pattern.layout == TileLayout::kTwoFour || pattern.layout == TileLayout::kTwoFourInt8;
      const int m = two_four ? 4 : pattern.layout == TileLayout::kBalanced ? 32 : 0;
      for (int64_t k = 0; k < cols && holds_codes(pattern.layout); ++k) {
        const float scale = code_scale(r, k);
        const float code = std::clamp(std::round(bf16_to_float(row[k]) * 64), -127.0f, 127.0f);
        row[k] = float_to_bf16(code * scale);
      }
      if (m == 0) {
        for (int64_t k = 0; k < cols; ++k) {
          const double density = !pattern.uneven ? pattern.density : (r / 4 + k / 32) % 2 == 0 ? 0.97 : 0.03;
          row[k] = uniform(random) < density ? row[k] : 0;
        }
        continue;
      }
      for (int64_t first = 0; first < cols; first += m) {
        int left = m == 4 ? 2 : pattern.n;
        for (int i = 0; i < m; ++i) {
          if (uniform(random) * static_cast<float>(m - i) < static_cast<float>(left)) {
            --left;
          } else {
            row[first + i] = 0;
          }
        }
      }
    }
  });
  return values;
}

// Packed experts on the device, `copies` times over.
struct Weights {
  TiledWeights host;
  DeviceArray<uint8_t> tiles;
  DeviceArray<uint32_t> starts;
  DeviceTiles device;
  double bytes_each = 0;
};

inline Result<TiledWeights> tile_grid(const Pattern& pattern, const std::vector<uint16_t>& dense, int rows, int cols,
                                      int experts) {
  std::vector<int8_t> codes(dense.size());
  const int groups = (cols + kGroup - 1) / kGroup;
  std::vector<uint16_t> scales(static_cast<size_t>(experts) * rows * groups);
  pool().parallel_for(static_cast<int64_t>(experts) * rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t k = 0; k < cols; ++k) {
        const auto at = static_cast<size_t>(r * cols + k);
        codes[at] = static_cast<int8_t>(bf16_to_float(dense[at]) / code_scale(r, k));
        scales[static_cast<size_t>(r * groups + k / kGroup)] = float_to_f16(code_scale(r, k));
      }
    }
  });
  std::vector<CodeMatrix> sources;
  for (int64_t e = 0; e < experts; ++e) {
    sources.emplace_back(rows, cols, codes.data() + e * rows * cols, scales.data() + e * rows * groups);
  }
  return tile_codes(pool(), pattern.layout, sources);
}

inline Weights pack(const Pattern& pattern, const std::vector<uint16_t>& dense, int rows, int cols, int experts,
                    int copies) {
  Weights weights;
  std::vector<MatrixSource> sources;
  for (int e = 0; e < experts; ++e) {
    sources.emplace_back(DType::kBF16, rows, cols, dense.data() + static_cast<size_t>(e) * rows * cols);
  }
  Result<TiledWeights> tiled = holds_codes(pattern.layout) ? tile_grid(pattern, dense, rows, cols, experts)
                                                           : tile_weights(pool(), pattern.layout, sources, pattern.n);
  MUST(tiled.status());
  weights.host = std::move(tiled.value());
  const size_t size = weights.host.tiles.size();
  weights.tiles = DeviceArray<uint8_t>(size * static_cast<size_t>(copies));
  for (int i = 0; i < copies; ++i) {
    MUST(cudaMemcpy(weights.tiles.data() + static_cast<size_t>(i) * size, weights.host.tiles.data(), size,
                    cudaMemcpyHostToDevice));
  }
  std::vector<uint32_t> starts;
  if (pattern.layout == TileLayout::kBitmap) {
    for (int i = 0; i < copies; ++i) {
      for (size_t t = 0; t + 1 < weights.host.starts.size(); ++t) {
        starts.push_back(weights.host.starts[t] + static_cast<uint32_t>(size / 16) * static_cast<uint32_t>(i));
      }
    }
    starts.push_back(static_cast<uint32_t>(size / 16) * static_cast<uint32_t>(copies));
  }
  weights.starts = DeviceArray<uint32_t>(starts);
  weights.device = describe_tiles(weights.host, weights.tiles.data(), weights.starts.data());
  weights.device.count = static_cast<int64_t>(experts) * copies;
  weights.bytes_each = static_cast<double>(weights.host.bytes()) / experts;
  return weights;
}

// Dense weights for cuBLAS, and what one launch of it is.
class Dense {
 public:
  Dense(const Shape& shape, int experts) : shape_(shape), experts_(experts) {
    const std::vector<uint16_t> one = random_bits(static_cast<size_t>(shape.rows) * shape.cols);
    weights_ = DeviceArray<uint16_t>(one.size() * static_cast<size_t>(experts));
    for (int e = 0; e < experts; ++e) {
      MUST(cudaMemcpy(weights_.data() + one.size() * static_cast<size_t>(e), one.data(), one.size() * 2,
                      cudaMemcpyHostToDevice));
    }
    if (cublasCreate(&handle_) != CUBLAS_STATUS_SUCCESS) std::exit(1);
    workspace_ = DeviceArray<uint8_t>(32u << 20);
    cublasSetWorkspace(handle_, workspace_.data(), workspace_.size());
  }
  ~Dense() { cublasDestroy(handle_); }

  void one(int expert, const uint16_t* x, void* y, int tokens, cudaStream_t stream) {
    const float alpha = 1;
    const float beta = 0;
    cublasSetStream(handle_, stream);
    good(cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, shape_.rows, tokens, shape_.cols, &alpha, at(expert),
                      CUDA_R_16BF, shape_.cols, x, CUDA_R_16BF, shape_.cols, &beta, y, CUDA_R_16BF, shape_.rows,
                      CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }
  void batched(const void* const* w, const void* const* x, void* const* y, int tokens, cudaStream_t stream) {
    const float alpha = 1;
    const float beta = 0;
    cublasSetStream(handle_, stream);
    good(cublasGemmBatchedEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, shape_.rows, tokens, shape_.cols, &alpha, w,
                             CUDA_R_16BF, shape_.cols, x, CUDA_R_16BF, shape_.cols, &beta, y, CUDA_R_16BF, shape_.rows,
                             shape_.routed, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }
  uint16_t* at(int expert) const {
    return weights_.data() + static_cast<size_t>(expert % experts_) * static_cast<size_t>(shape_.rows) * shape_.cols;
  }
  double bytes() const { return 2.0 * shape_.rows * shape_.cols * shape_.routed; }
  const DeviceArray<uint16_t>& weights() const { return weights_; }

 private:
  static void good(cublasStatus_t status) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    std::fprintf(stderr, "cuBLAS: %d\n", static_cast<int>(status));
    std::exit(1);
  }

  Shape shape_;
  int experts_;
  DeviceArray<uint16_t> weights_;
  DeviceArray<uint8_t> workspace_;
  cublasHandle_t handle_ = nullptr;
};

}  // namespace bench
