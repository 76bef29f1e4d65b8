// Decode products against cuBLAS. First every layout is checked against float64 with fresh random inputs, then timed:
// replayed CUDA graphs, weights from memory (consecutive launches read different copies, more than the L2 cache holds),
// medians, all contenders in turns in one run. "Read" is a plain read of the same bytes.
//
//   bench/cuda/build.sh decode_products && ./decode_products [check|sanitize|time|tune|profile] [seed]
#include <cublas_v2.h>

#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>

#include "harness.cuh"
#include "kernels/cuda/product.h"

using namespace espalier;
using namespace espalier::cuda;
using bench::DeviceArray;

namespace {

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

const Pattern kTwoFour{TileLayout::kTwoFour, 0.5, 0, "2:4"};
const Pattern kBalanced{TileLayout::kBalanced, 0.5, 16, "16:32"};
const Pattern kBitmap50{TileLayout::kBitmap, 0.5, 0, "bitmap 50 %"};
const Pattern kUneven{TileLayout::kBitmap, 0.5, 0, "uneven bitmap", true};
const Pattern kBitmap70{TileLayout::kBitmap, 0.3, 0, "bitmap 70 %"};

unsigned g_seed = 0;
ThreadPool& pool() {
  static ThreadPool threads(0);
  return threads;
}

std::vector<uint16_t> random_bits(size_t count) {
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

// Random weights with the zeros of a pattern: bf16 bits, row after row.
std::vector<uint16_t> random_weights(const Pattern& pattern, int64_t rows, int64_t cols) {
  std::vector<uint16_t> values = random_bits(static_cast<size_t>(rows * cols));
  const unsigned seed = ++g_seed;
  pool().parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    std::minstd_rand random(seed * 6151u + static_cast<unsigned>(begin) + 1u);
    std::uniform_real_distribution<float> uniform;
    for (int64_t r = begin; r < end; ++r) {
      uint16_t* row = values.data() + r * cols;
      const int m = pattern.layout == TileLayout::kTwoFour ? 4 : pattern.layout == TileLayout::kBalanced ? 32 : 0;
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

Weights pack(const Pattern& pattern, const std::vector<uint16_t>& dense, int rows, int cols, int experts, int copies) {
  Weights weights;
  std::vector<MatrixSource> sources;
  for (int e = 0; e < experts; ++e) {
    sources.emplace_back(DType::kBF16, rows, cols, dense.data() + static_cast<size_t>(e) * rows * cols);
  }
  Result<TiledWeights> tiled = tile_weights(pool(), pattern.layout, sources, pattern.n);
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

// The largest ‖y − reference‖ / ‖reference‖ over outputs as float32 and bf16; stops where one is too large.
double check(const Pattern& pattern, const Shape& shape, int experts, int tokens) {
  const std::vector<uint16_t> dense = random_weights(pattern, static_cast<int64_t>(experts) * shape.rows, shape.cols);
  const Weights weights = pack(pattern, dense, shape.rows, shape.cols, experts, 1);
  MUST(validate_tiles(pool(), weights.host));
  const DeviceArray<uint16_t> w(dense);
  const int pairs = shape.routed * tokens;
  const DeviceArray<uint16_t> x(random_bits(static_cast<size_t>(pairs + 3) * shape.cols));
  std::mt19937 random(++g_seed);
  std::vector<int32_t> chosen(static_cast<size_t>(shape.routed));
  std::vector<int32_t> rows(static_cast<size_t>(pairs));
  for (int32_t& e : chosen) e = static_cast<int32_t>(random() % static_cast<unsigned>(experts));
  for (int32_t& r : rows) r = static_cast<int32_t>(random() % static_cast<unsigned>(pairs + 3));
  const DeviceArray<int32_t> chosen_device(chosen);
  const DeviceArray<int32_t> rows_device(rows);
  const size_t outputs = static_cast<size_t>(pairs) * shape.rows;
  DeviceArray<double> reference(outputs);
  reference.poison();
  bench::reference_kernel<<<dim3(static_cast<unsigned>(shape.rows), static_cast<unsigned>(pairs)), 128>>>(
      reinterpret_cast<const __nv_bfloat16*>(w.data()), reinterpret_cast<const __nv_bfloat16*>(x.data()),
      chosen_device.data(), rows_device.data(), reference.data(), shape.rows, shape.cols, tokens);
  MUST(cudaGetLastError());
  const std::vector<double> expected = reference.host();

  Product product{weights.device, shape.routed, tokens, x.data(), chosen_device.data()};
  product.inputs = rows_device.data();
  double worst = 0;
  // The tensor cores cut off what a sum in float32 cannot hold, at every step of 16 or 32 inputs.
  const double limit = 2e-6 + 2e-9 * shape.cols;
  for (const int split : {0, 1, 4}) {
    for (const OutputType type : {OutputType::kF32, OutputType::kBf16}) {
      DeviceArray<uint8_t> y(outputs * 4);
      y.poison();
      product.y = y.data();
      product.output = type;
      MUST(launch_product(product, nullptr, {split, split == 4 ? 3 : 0}));
      MUST(cudaDeviceSynchronize());
      const std::vector<uint8_t> bytes = y.host();
      double difference = 0;
      double norm = 0;
      for (size_t i = 0; i < outputs; ++i) {
        const double value =
            load_float(type == OutputType::kF32 ? DType::kF32 : DType::kBF16, bytes.data(), static_cast<int64_t>(i));
        difference += (value - expected[i]) * (value - expected[i]);
        norm += expected[i] * expected[i];
      }
      const double error = std::sqrt(difference / norm);
      if (!(error < (type == OutputType::kF32 ? limit : 4e-3))) {
        std::fprintf(stderr, "%s %dx%d, %d of %d experts, %d tokens, split %d, %s: relative error %g\n",
                     pattern.name.c_str(), shape.rows, shape.cols, shape.routed, experts, tokens, split,
                     type == OutputType::kF32 ? "f32" : "bf16", error);
        std::exit(1);
      }
      if (type == OutputType::kF32) worst = std::max(worst, error);
    }
  }
  return worst;
}

enum class Extent { kFew, kSmall, kLarge };

void check_all(Extent extent) {
  const bool large = extent == Extent::kLarge;
  const bool few = extent == Extent::kFew;
  const std::vector<Shape> shapes =
      few     ? std::vector<Shape>{{64, 512, 3}, {23, 96, 2}}
      : large ? std::vector<Shape>{{14336, 4096, 1}, {4096, 14336, 1}, {1536, 2048, 8}, {2048, 768, 8}}
              : std::vector<Shape>{{16, 128, 1}, {64, 512, 3}, {23, 96, 2}, {200, 1056, 4}, {1, 32, 1}};
  for (const Pattern& pattern : {kTwoFour, kBalanced, kBitmap50, kBitmap70, kUneven}) {
    double worst = 0;
    for (const Shape& shape : shapes) {
      for (const int tokens : {1, 2, 5, 8, 9, 16, 17, 32, 33, 64}) {
        if (tokens > most_tokens(pattern.layout) || (large && tokens != 1 && tokens != 8 && tokens != 33) ||
            (few && tokens % 8 != 1))
          continue;
        worst = std::max(worst, check(pattern, shape, shape.routed == 1 ? 1 : 10, tokens));
      }
    }
    std::printf("checked: %s, relative error to float64 at most %.1e\n", pattern.name.c_str(), worst);
  }
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

constexpr int kRuns = 16;

// Experts in memory, so that consecutive launches read other ones and 16 launches read 128.
int experts_in_memory(const Shape& shape) { return shape.routed == 1 ? 4 : kRuns * shape.routed; }

struct Bench {
  Shape shape;
  int experts;
  Dense dense;
  std::map<std::string, Weights> sparse;
  DeviceArray<uint16_t> x;
  DeviceArray<uint16_t> y;
  std::vector<DeviceArray<int32_t>> chosen;  // of each run
  std::vector<DeviceArray<const void*>> w_pointers, x_pointers;
  std::vector<DeviceArray<void*>> y_pointers;
  DeviceArray<uint32_t> sink{1};

  explicit Bench(const Shape& wanted)
      : shape(wanted),
        experts(experts_in_memory(wanted)),
        dense(wanted, experts),
        x(random_bits(static_cast<size_t>(wanted.routed) * 64 * wanted.cols)),
        y(static_cast<size_t>(wanted.routed) * 64 * wanted.rows) {
    std::vector<int32_t> order(static_cast<size_t>(experts));
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 random(++g_seed);
    if (shape.routed > 1) std::shuffle(order.begin(), order.end(), random);
    for (int run = 0; run < kRuns; ++run) {
      std::vector<int32_t> mine;
      for (int i = 0; i < shape.routed; ++i)
        mine.push_back(order[static_cast<size_t>((run * shape.routed + i) % experts)]);
      chosen.emplace_back(mine);
    }
  }

  const Weights& weights(const Pattern& pattern) {
    const auto found = sparse.find(pattern.name);
    if (found != sparse.end()) return found->second;
    const int distinct = shape.routed;
    const std::vector<uint16_t> values =
        random_weights(pattern, static_cast<int64_t>(distinct) * shape.rows, shape.cols);
    return sparse.emplace(pattern.name, pack(pattern, values, shape.rows, shape.cols, distinct, experts / distinct))
        .first->second;
  }

  bench::Contender ours(const Pattern& pattern, int tokens, const ProductTuning& tuning, const std::string& name) {
    const Weights& w = weights(pattern);
    return {name,
            [this, &w, tokens, tuning](int i, cudaStream_t stream) {
              Product product{w.device, shape.routed, tokens, x.data(), chosen[static_cast<size_t>(i)].data()};
              product.experts_settled = true;
              product.y = y.data();
              MUST(launch_product(product, stream, tuning));
            },
            w.bytes_each * shape.routed};
  }

  // A plain read of as many bytes, from places as far apart.
  bench::Contender reading(double bytes) {
    const auto blocks = static_cast<int64_t>(bytes / 16);
    const auto places = std::max<int64_t>(static_cast<int64_t>(dense.weights().size()) / 8 / blocks, 1);
    return {"read",
            [this, blocks, places](int i, cudaStream_t stream) {
              const auto* from = reinterpret_cast<const uint4*>(dense.weights().data()) + i % places * blocks;
              bench::read_kernel<<<132 * 4, 512, 0, stream>>>(from, blocks, sink.data());
              MUST(cudaGetLastError());
            },
            bytes};
  }

  // cuBLAS at its best: of several experts, a batched product or one after the other.
  std::vector<bench::Contender> peers(int tokens) {
    std::vector<bench::Contender> list;
    list.push_back({"cuBLAS",
                    [this, tokens](int i, cudaStream_t stream) {
                      for (int e = 0; e < shape.routed; ++e) {
                        const size_t at = static_cast<size_t>(e) * static_cast<size_t>(tokens);
                        dense.one(i * shape.routed + e, x.data() + at * shape.cols, y.data() + at * shape.rows, tokens,
                                  stream);
                      }
                    },
                    dense.bytes()});
    if (shape.routed == 1) return list;
    w_pointers.clear();
    x_pointers.clear();
    y_pointers.clear();
    for (int run = 0; run < kRuns; ++run) {
      const std::vector<int32_t> mine = chosen[static_cast<size_t>(run)].host();
      std::vector<const void*> w, in;
      std::vector<void*> out;
      for (int e = 0; e < shape.routed; ++e) {
        const size_t at = static_cast<size_t>(e) * static_cast<size_t>(tokens);
        w.push_back(dense.at(mine[static_cast<size_t>(e)]));
        in.push_back(x.data() + at * shape.cols);
        out.push_back(y.data() + at * shape.rows);
      }
      w_pointers.emplace_back(w);
      x_pointers.emplace_back(in);
      y_pointers.emplace_back(out);
    }
    list.push_back({"cuBLAS batched",
                    [this, tokens](int i, cudaStream_t stream) {
                      const auto run = static_cast<size_t>(i);
                      dense.batched(w_pointers[run].data(), x_pointers[run].data(), y_pointers[run].data(), tokens,
                                    stream);
                    },
                    dense.bytes()});
    return list;
  }
};

const std::vector<Shape> kShapes = {{14336, 4096, 1}, {4096, 14336, 1}, {1536, 2048, 8}, {2048, 768, 8}};

void time_all() {
  std::printf(
      "| shape | weights | N | µs | GB/s | of the read | cuBLAS µs | × cuBLAS | × limit "
      "|\n|---|---|---|---|---|---|---|---|---|\n");
  for (const Shape& shape : kShapes) {
    Bench bench(shape);
    for (const int tokens : {1, 4, 8, 16, 32, 64}) {
      for (const Pattern& pattern : {kTwoFour, kBalanced, kBitmap50, kBitmap70}) {
        if (tokens > most_tokens(pattern.layout) || (pattern.layout != TileLayout::kTwoFour && tokens == 4)) continue;
        std::vector<bench::Contender> contenders = bench.peers(tokens);
        const size_t peers = contenders.size();
        contenders.push_back(bench.ours(pattern, tokens, {}, pattern.name));
        contenders.push_back(bench.reading(contenders.back().bytes));
        bench::measure(contenders, kRuns, 15);
        double peer = contenders[0].micros;
        for (size_t i = 1; i < peers; ++i) peer = std::min(peer, contenders[i].micros);
        const bench::Contender& own = contenders[peers];
        const double read = contenders[peers + 1].micros;
        std::printf("| %dx%d%s | %s | %d | %.2f | %.0f | %.0f %% | %.2f | %.2f | %.2f |\n", shape.rows, shape.cols,
                    shape.routed == 1 ? "" : " x8", pattern.name.c_str(), tokens, own.micros,
                    own.bytes / own.micros / 1000, 100 * read / own.micros, peer, peer / own.micros, peer / read);
        std::fflush(stdout);
      }
    }
  }
}

// Several ways to use the GPU, to choose what the launcher does.
void tune_all() {
  struct Way {
    const char* name;
    ProductTuning tuning;
  };
  for (const Shape& shape : kShapes) {
    Bench bench(shape);
    for (const int tokens : {1, 8, 16, 32, 64}) {
      for (const Pattern& pattern : {kTwoFour, kBalanced, kBitmap50, kBitmap70}) {
        if (tokens > 8 && pattern.layout != TileLayout::kTwoFour) continue;
        std::vector<bench::Contender> contenders;
        std::vector<Way> ways = {{"default", {}}, {"3 stages", {0, 3}}, {"split 2", {2}}, {"split 4", {4}}};
        if (tokens <= 32) ways.insert(ways.end(), {{"split 8", {8}}});
        for (const Way& way : ways) contenders.push_back(bench.ours(pattern, tokens, way.tuning, way.name));
        contenders.push_back(bench.reading(contenders.back().bytes));
        bench::measure(contenders, kRuns, 7);
        std::printf("%dx%d %s N=%d:", shape.rows, shape.cols, pattern.name.c_str(), tokens);
        for (const bench::Contender& c : contenders) std::printf("  %s: %.1f", c.name.c_str(), c.micros);
        std::printf("\n");
        std::fflush(stdout);
      }
    }
  }
}

// One launch of each, for a profiler.
void launch_each() {
  Bench bench(kShapes[0]);
  for (const int tokens : {1, 8, 16, 32, 64}) {
    for (const Pattern& pattern : {kTwoFour, kBalanced, kBitmap50, kBitmap70}) {
      if (tokens <= most_tokens(pattern.layout)) bench.ours(pattern, tokens, {}, pattern.name).launch(0, nullptr);
    }
  }
  MUST(cudaDeviceSynchronize());
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "all";
  g_seed = argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)) : std::random_device{}() % 1000000;
  cudaDeviceProp properties;
  MUST(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, seed %u\n", properties.name, g_seed);
  if (mode == "sanitize") check_all(Extent::kFew);
  if (mode == "check" || mode == "all") check_all(Extent::kSmall);
  if (mode == "all") check_all(Extent::kLarge);
  if (mode == "time" || mode == "all") time_all();
  if (mode == "tune") tune_all();
  if (mode == "profile") launch_each();
  return 0;
}
