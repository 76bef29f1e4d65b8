#include "engine/linear.h"

#include <algorithm>

namespace espalier {
namespace {

// Weight bytes below which a range is not worth handing to another thread.
constexpr int64_t kRangeBytes = 32 * 1024;

Result<Linear> pack(ThreadPool& pool, WeightPolicy policy, DType values, int64_t rows, int64_t cols,
                    const PackedMatrix::RowReader& read) {
  const Format chosen = policy.sparse ? choose_format(pool, values, rows, cols, read) : Format{Storage::kDense, values};
  Result<PackedMatrix> packed = PackedMatrix::pack(pool, chosen, rows, cols, read);
  if (!packed.is_ok()) return packed.status();
  Linear linear;
  linear.weights = std::move(packed.value());
  return linear;
}

}  // namespace

Result<Linear> Linear::load(ThreadPool& pool, WeightPolicy policy, const WeightRef& weights, const WeightRef& bias) {
  Result<HostMatrix> host = HostMatrix::load(weights);
  if (!host.is_ok()) return host.status();
  const HostMatrix& matrix = host.value();
  // f16 has more mantissa than bf16, so it is kept exactly as f32 unless rounding is asked for.
  const DType values = matrix.dtype() == DType::kBF16 || policy.round_to_bf16 ? DType::kBF16 : DType::kF32;
  Result<Linear> linear = pack(pool, policy, values, matrix.rows(), matrix.cols(),
                               [&](int64_t row, float* out) { matrix.read_row(row, out); });
  if (linear.is_ok() && bias.present()) {
    Result<std::vector<float>> loaded = load_vector(bias);
    if (!loaded.is_ok()) return loaded.status();
    linear.value().bias = std::move(loaded.value());
  }
  return linear;
}

Result<Linear> Linear::from_floats(ThreadPool& pool, WeightPolicy policy, DType values, int64_t rows, int64_t cols,
                                   const float* data) {
  return pack(pool, policy, values, rows, cols,
              [&](int64_t row, float* out) { std::copy(data + row * cols, data + (row + 1) * cols, out); });
}

void multiply(const Compute& compute, std::span<const Product> products) {
  std::vector<int64_t> first_tile(products.size() + 1, 0);
  int64_t bytes = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const bool used = products[i].tokens > 0;
    first_tile[i + 1] = first_tile[i] + (used ? products[i].linear->weights.tile_rows() : 0);
    if (used) bytes += products[i].linear->weights.bytes() * std::min<int64_t>(products[i].tokens, 16);
  }
  const int64_t tiles = first_tile.back();
  if (tiles == 0) return;
  const int64_t grain = std::clamp<int64_t>(tiles * kRangeBytes / std::max<int64_t>(bytes, 1), 1, tiles);
  compute.pool.parallel_for(tiles, grain, [&](int64_t begin, int64_t end) {
    size_t i =
        static_cast<size_t>(std::upper_bound(first_tile.begin(), first_tile.end(), begin) - first_tile.begin()) - 1;
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, first_tile[i + 1]);
      if (stop <= begin) continue;
      const Product& p = products[i];
      const PackedMatrix& weights = p.linear->weights;
      const int64_t tile = begin - first_tile[i];
      const int64_t tile_end = stop - first_tile[i];
      compute.kernels.matmul(weights.format())(weights, tile, tile_end, p.x, p.x_stride, p.tokens, p.y, p.y_stride);
      if (!p.linear->bias.empty()) {
        const int64_t row_end = std::min(tile_end * kTileRows, weights.rows());
        for (int64_t t = 0; t < p.tokens; ++t) {
          for (int64_t r = tile * kTileRows; r < row_end; ++r)
            p.y[t * p.y_stride + r] += p.linear->bias[static_cast<size_t>(r)];
        }
      }
      begin = stop;
    }
  });
}

Result<std::vector<float>> load_vector(const WeightRef& ref) {
  Result<HostMatrix> host = HostMatrix::load(ref);
  if (!host.is_ok()) return host.status();
  return host.value().to_floats();
}

}  // namespace espalier
