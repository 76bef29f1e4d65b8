#include "engine/linear.h"

#include <algorithm>

#include "engine/packed_weight.h"

namespace espalier {
namespace {

// Weight bytes of a range: a sixteenth of a thread's share, so that the threads finish together, within these limits:
// below, a range is not worth handing out; above, longer streams gain nothing.
constexpr int64_t kLeastRangeBytes = 32 * 1024;
constexpr int64_t kMostRangeBytes = 1024 * 1024;

// Tile rows of a range where tokens are many: enough to use what is in cache again, few enough to balance the threads.
constexpr int64_t kMostTiledRows = 64;
constexpr int64_t kManyTokens = 16;

// A range's tile rows: by the bytes that it reads where reading bounds the products, else by count.
int64_t range_tiles(const Compute& compute, int64_t tiles, int64_t bytes, int64_t tokens) {
  const auto threads = static_cast<int64_t>(compute.pool.size());
  if (tokens >= kManyTokens) return std::clamp<int64_t>(tiles / (threads * 4) / 2 * 2, 2, kMostTiledRows);
  const int64_t range = std::clamp(bytes / (16 * threads), kLeastRangeBytes, kMostRangeBytes);
  const int64_t wanted = tiles * range / std::max<int64_t>(bytes, 1);
  const int64_t whole = (wanted + kTilesAtOnce - 1) / kTilesAtOnce * kTilesAtOnce;
  // Few tile rows are better shared out than taken together.
  return std::clamp<int64_t>(whole, 1, std::max<int64_t>(1, tiles / (4 * threads)));
}

// y = x Wᵀ + bias for the tile rows [begin, end); y is the output of the first of their rows.
void multiply_range(const Compute& compute, const Linear& linear, const Inputs::Form& input, int64_t begin, int64_t end,
                    float* y, int64_t y_stride) {
  const PackedMatrix& weights = linear.weights;
  compute.kernels.matmul(weights.format())({.weights = weights,
                                            .tile_begin = begin,
                                            .tile_end = end,
                                            .x = input.x,
                                            .x_stride = input.x_stride,
                                            .tiles = input.tiles,
                                            .quantised = &input.quantised,
                                            .tokens = input.tokens,
                                            .y = y,
                                            .y_stride = y_stride});
  if (linear.bias.empty()) return;
  const int64_t rows = std::min(end * kTileRows, weights.rows()) - begin * kTileRows;
  const float* bias = linear.bias.data() + begin * kTileRows;
  for (int64_t t = 0; t < input.tokens; ++t) {
    for (int64_t r = 0; r < rows; ++r) y[t * y_stride + r] += bias[r];
  }
}

// What a product's matrices read.
struct ProductInputs {
  const Inputs::Form* linear = nullptr;
  const Inputs::Form* up = nullptr;
};

void multiply_range(const Compute& compute, const Product& p, const ProductInputs& inputs, int64_t begin, int64_t end) {
  float* y = p.y + begin * kTileRows;
  multiply_range(compute, *p.linear, *inputs.linear, begin, end, y, p.y_stride);
  if (p.up == nullptr) return;
  const int64_t width = (end - begin) * kTileRows;
  const int64_t rows = std::min(width, p.up->weights.rows() - begin * kTileRows);
  thread_local AlignedBuffer<float> up;
  up.ensure(static_cast<size_t>(p.tokens * width));
  multiply_range(compute, *p.up, *inputs.up, begin, end, up.data(), width);
  for (int64_t t = 0; t < p.tokens; ++t) {
    compute.kernels.silu_multiply(y + t * p.y_stride, up.data() + t * width, rows, y + t * p.y_stride);
  }
}

// The products, those of many tokens cut into chunks of tokens, those of none left out.
std::vector<Product> chunked(const Inputs& forms, std::span<const Product> products) {
  std::vector<Product> chunks;
  for (const Product& whole : products) {
    const int64_t chunk = forms.chunk(whole.linear->weights, whole.tokens);
    for (int64_t first = 0; first < whole.tokens; first += chunk) {
      Product& part = chunks.emplace_back(whole);
      part.x += first * whole.x_stride;
      part.y += first * whole.y_stride;
      part.tokens = std::min(chunk, whole.tokens - first);
    }
  }
  return chunks;
}

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

void multiply(const Compute& compute, std::span<const Product> whole) {
  Inputs forms(compute.pool, compute.kernels, compute.activations);
  const std::vector<Product> products = chunked(forms, whole);
  std::vector<int64_t> first_tile(products.size() + 1, 0);
  std::vector<ProductInputs> inputs(products.size());
  int64_t bytes = 0;
  int64_t tokens = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const Product& p = products[i];
    first_tile[i + 1] = first_tile[i] + p.linear->weights.tile_rows();
    inputs[i].linear = &forms.form(p.linear->weights, p.x, p.x_stride, p.tokens);
    bytes += p.linear->weights.bytes() * p.tokens;
    tokens = std::max(tokens, p.tokens);
    if (p.up == nullptr) continue;
    inputs[i].up = &forms.form(p.up->weights, p.x, p.x_stride, p.tokens);
    bytes += p.up->weights.bytes() * p.tokens;
  }
  const int64_t tiles = first_tile.back();
  if (tiles == 0) return;
  compute.pool.parallel_for(tiles, range_tiles(compute, tiles, bytes, tokens), [&](int64_t begin, int64_t end) {
    size_t i =
        static_cast<size_t>(std::upper_bound(first_tile.begin(), first_tile.end(), begin) - first_tile.begin()) - 1;
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, first_tile[i + 1]);
      if (stop <= begin) continue;
      multiply_range(compute, products[i], inputs[i], begin - first_tile[i], stop - first_tile[i]);
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
