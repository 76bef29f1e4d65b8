// Experts for tests of products of many tokens.
#pragma once

#include <memory>

#include "gpu.h"
#include "kernels/cuda/product.h"
#include "tiling.h"

namespace espalier::test {

inline bool has_wide_products() {
  if (!has_gpu()) return false;
  if (cuda::has_wide_products(0)) return true;
  MESSAGE("skipped: the GPU has no products of warpgroups");
  return false;
}

// Experts of one shape on the host and, as tiles, on the device.
struct Experts {
  std::vector<std::vector<float>> matrices;
  cuda::TiledWeights host;
  std::unique_ptr<OnGpu<uint8_t>> tiles;
  std::unique_ptr<OnGpu<uint32_t>> starts;

  Experts(ThreadPool& pool, const Tiling& pattern, int count, int rows, int cols) {
    Result<cuda::TiledWeights> tiled = tile_random(generator(), pool, pattern, count, rows, cols, matrices);
    require(tiled.status());
    host = std::move(tiled.value());
    // What codes stand for is rounded before it is multiplied.
    for (auto& values : matrices) {
      for (float& value : values) value = bf16_to_float(float_to_bf16(value));
    }
    tiles = std::make_unique<OnGpu<uint8_t>>(
        std::vector<uint8_t>(host.tiles.data(), host.tiles.data() + host.tiles.size()));
    starts = std::make_unique<OnGpu<uint32_t>>(host.starts);
  }
  cuda::DeviceTiles view() const { return cuda::describe_tiles(host, tiles->get(), starts->get()); }
  double product(int expert, int row, const double* x) const {
    const std::vector<float>& matrix = matrices[static_cast<size_t>(expert)];
    double sum = 0;
    for (int64_t k = 0; k < host.cols; ++k)
      sum += static_cast<double>(matrix[static_cast<size_t>(row * host.cols + k)]) * x[k];
    return sum;
  }
};

// A code's weight may be rounded twice.
inline double limit(const Tiling& pattern) { return cuda::holds_codes(pattern.layout) ? 5e-4 : 1e-5; }

}  // namespace espalier::test
