#include "engine/linear.h"

#include <algorithm>
#include <deque>

#include "engine/packed_weight.h"

namespace espalier {
namespace {

// Weight bytes of a range: a sixteenth of a thread's share, so that the threads finish together, within these limits:
// below, a range is not worth handing out; above, longer streams gain nothing.
constexpr int64_t kLeastRangeBytes = 32 * 1024;
constexpr int64_t kMostRangeBytes = 1024 * 1024;

// Activations as int8, for the products that want them: one copy for all that read the same x.
class QuantisedInputs {
 public:
  QuantisedInputs(const Compute& compute, std::span<const Product> products) {
    of_.resize(products.size(), -1);
    for (size_t i = 0; i < products.size(); ++i) {
      const Product& p = products[i];
      if (p.tokens == 0 || !is_quantised(p.linear->weights.format().values)) continue;
      for (size_t before = 0; before < i && of_[i] < 0; ++before) {
        if (products[before].x == p.x && products[before].tokens == p.tokens) of_[i] = of_[before];
      }
      if (of_[i] >= 0) continue;
      of_[i] = static_cast<int>(inputs_.size());
      quantise(compute, p);
    }
  }

  const QuantisedRows* of(size_t product) const {
    return of_[product] < 0 ? nullptr : &inputs_[static_cast<size_t>(of_[product])].rows;
  }

 private:
  struct Input {
    AlignedBuffer<int8_t> q;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    QuantisedRows rows;
  };

  void quantise(const Compute& compute, const Product& p) {
    Input& input = inputs_.emplace_back();
    const int64_t groups = p.linear->weights.groups();
    input.q.reset_uninitialised(static_cast<size_t>(p.tokens * groups * kGroup));
    input.scales.resize(static_cast<size_t>(p.tokens * groups));
    input.sums.resize(input.scales.size());
    compute.pool.parallel_for(p.tokens, 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        compute.kernels.quantise_row(p.x + t * p.x_stride, p.linear->weights.cols(),
                                     input.q.data() + t * groups * kGroup, input.scales.data() + t * groups,
                                     input.sums.data() + t * groups);
      }
    });
    input.rows = {input.q.data(), input.scales.data(), input.sums.data(), groups};
  }

  std::vector<int> of_;
  std::deque<Input> inputs_;  // stable addresses
};

}  // namespace

Result<Linear> Linear::load(ThreadPool& pool, WeightPolicy policy, const WeightRef& weights, const WeightRef& bias) {
  Result<PackedMatrix> packed =
      weights.is_packed() ? load_packed(pool, policy, weights) : pack_weight(pool, policy, weights);
  if (!packed.is_ok()) return packed.status();
  Linear linear;
  linear.weights = std::move(packed.value());
  if (bias.present()) {
    Result<std::vector<float>> loaded = load_vector(bias);
    if (!loaded.is_ok()) return loaded.status();
    linear.bias = std::move(loaded.value());
  }
  return linear;
}

Result<Linear> Linear::from_floats(ThreadPool& pool, WeightPolicy policy, DType source, int64_t rows, int64_t cols,
                                   const float* data) {
  Result<PackedMatrix> packed = pack_source(pool, policy, source, MatrixSource(DType::kF32, rows, cols, data));
  if (!packed.is_ok()) return packed.status();
  Linear linear;
  linear.weights = std::move(packed.value());
  return linear;
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
  const QuantisedInputs inputs(compute, products);
  const int64_t range = std::clamp(bytes / (16 * compute.pool.size()), kLeastRangeBytes, kMostRangeBytes);
  const int64_t grain = std::clamp<int64_t>(tiles * range / std::max<int64_t>(bytes, 1), 1, tiles);
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
      compute.kernels.matmul(weights.format())(
          {weights, tile, tile_end, p.x, p.x_stride, inputs.of(i), p.tokens, p.y, p.y_stride});
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
