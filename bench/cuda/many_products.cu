// Products of many tokens against cuBLAS, and against the kernels for few. First every layout is checked against
// float64 with fresh random inputs, then timed: replayed CUDA graphs, weights from memory (consecutive launches read
// different copies, more than the L2 cache holds), medians, all contenders in turns in one run.
//
// "through Lt" is DenseProducts, "on the way" launch_expanded_product of all rows, "expand" expands alone.
//
//   bench/cuda/build.sh many_products && ./many_products [check|time|tune|dense|experts] [seed]
#include <cmath>
#include <numeric>

#include "kernels/cuda/dense_products.h"
#include "kernels/cuda/expand.h"
#include "products.cuh"

using namespace espalier;
using namespace espalier::cuda;
using namespace bench;

namespace {

const Pattern kDense{TileLayout::kDense, 1.0, 0, "dense"};
const Pattern kPatterns[] = {kDense, kTwoFour, kBalanced, kBitmap50, kBitmap70, kTwoFourInt8, kDenseInt8};
const Shape kShapes[] = {{14336, 4096, 1}, {4096, 14336, 1}};
constexpr int kCopies = 4;

std::vector<int32_t> counted(int count) {
  std::vector<int32_t> list(static_cast<size_t>(count));
  std::iota(list.begin(), list.end(), 0);
  return list;
}

// ‖y − reference‖ / ‖reference‖ of float32 outputs.
double error_of(const Pattern& pattern, const Shape& shape, int tokens, int groups, const WideTuning& tuning) {
  const int experts = groups == 1 ? 1 : groups + 2;
  const std::vector<uint16_t> dense = random_weights(pattern, static_cast<int64_t>(experts) * shape.rows, shape.cols);
  const Weights weights = pack(pattern, dense, shape.rows, shape.cols, experts, 1);
  const DeviceArray<uint16_t> w(dense);
  const int pairs = groups * tokens;
  const DeviceArray<uint16_t> x(random_bits(static_cast<size_t>(pairs) * shape.cols));
  std::vector<int32_t> chosen = counted(groups);
  for (int32_t& e : chosen) e = experts - 1 - e;
  const DeviceArray<int32_t> chosen_device(chosen);
  const DeviceArray<int32_t> rows(counted(pairs));
  const size_t outputs = static_cast<size_t>(pairs) * shape.rows;
  DeviceArray<double> reference(outputs);
  reference_kernel<<<dim3(static_cast<unsigned>(shape.rows), static_cast<unsigned>(pairs)), 128>>>(
      reinterpret_cast<const __nv_bfloat16*>(w.data()), reinterpret_cast<const __nv_bfloat16*>(x.data()),
      chosen_device.data(), rows.data(), reference.data(), shape.rows, shape.cols, tokens);
  MUST(cudaGetLastError());
  DeviceArray<float> y(outputs);
  y.poison();
  Product product{weights.device, groups, tokens, x.data(), chosen_device.data()};
  product.y = y.data();
  product.output = OutputType::kF32;
  MUST(launch_wide_product(product, nullptr, tuning));
  MUST(cudaDeviceSynchronize());
  const std::vector<double> expected = reference.host();
  const std::vector<float> found = y.host();
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < outputs; ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

bool check_all() {
  bool good = true;
  for (const Pattern& pattern : kPatterns) {
    double worst = 0;
    const auto take = [&](const Shape& shape, int tokens, int groups, const WideTuning& tuning) {
      const double error = error_of(pattern, shape, tokens, groups, tuning);
      worst = std::max(worst, error);
      if (error < 2e-6 + 2e-9 * shape.cols) return;
      good = false;
      std::printf("WRONG: %s %dx%d, %d tokens, %d groups, split %d, mates %d: %g\n", pattern.name.c_str(), shape.rows,
                  shape.cols, tokens, groups, tuning.split, tuning.mates, error);
    };
    for (const int tokens : {20, 33, 100, 256, 300}) {
      take({128, 128, 1}, tokens, 1, {});
      take({200, 1056, 1}, tokens, 3, {1, 2});
      take({416, 640, 1}, tokens, 2, {1, 1});
      take({320, 2048, 1}, tokens, 1, {4, 0});
    }
    take({4096, 14336, 1}, 48, 1, {});
    take({14336, 4096, 1}, 520, 1, {});
    take({14336, 4096, 1}, 1000, 1, {});
    std::printf("checked: %s, relative error to float64 at most %.1e\n", pattern.name.c_str(), worst);
    std::fflush(stdout);
  }
  return good;
}

bool is_expanded(const Pattern& pattern) {
  return pattern.layout == TileLayout::kBalanced || pattern.layout == TileLayout::kBitmap;
}

// One shape, and its weights in all layouts, or in those that are expanded.
class Bench {
 public:
  explicit Bench(const Shape& shape, bool only_expanded = false)
      : shape_(shape),
        dense_(shape, kCopies),
        x_(random_bits(static_cast<size_t>(kMostTokens) * static_cast<size_t>(shape.cols))),
        y_(static_cast<size_t>(kMostTokens) * static_cast<size_t>(shape.rows)) {
    for (const Pattern& pattern : kPatterns) {
      if (only_expanded && !is_expanded(pattern)) {
        weights_.emplace_back();
        continue;
      }
      const std::vector<uint16_t> values = random_weights(pattern, shape.rows, shape.cols);
      weights_.emplace_back(pack(pattern, values, shape.rows, shape.cols, 1, kCopies));
    }
    for (int32_t i = 0; i < kCopies; ++i) chosen_.emplace_back(std::vector<int32_t>{i});
  }
  static constexpr int kMostTokens = 8192;

  Contender cublas(int tokens) {
    return {"cuBLAS",
            [this, tokens](int i, cudaStream_t stream) { dense_.one(i, x_.data(), y_.data(), tokens, stream); }};
  }
  Contender wide(size_t pattern, int tokens, const std::string& name, const WideTuning& tuning = {}, int parts = 1) {
    return {name, [this, pattern, tokens, tuning, parts](int i, cudaStream_t stream) {
              Product product = product_of(pattern, i);
              product.tokens = tokens;
              product.parts = parts;
              MUST(launch_wide_product(product, stream, tuning));
            }};
  }
  Contender through_lt(size_t pattern, int tokens, DenseProducts& dense, const std::string& name) {
    return {name, [this, pattern, tokens, &dense](int i, cudaStream_t stream) {
              Product product{.weights = one_copy(pattern, i), .tokens = tokens, .x = x_.data(), .y = y_.data()};
              MUST(dense.launch(product, stream));
            }};
  }
  // Expanded on the way.
  Contender expanded(size_t pattern, int tokens, const ExpansionRoom& room) {
    return {"on the way", [this, pattern, tokens, room](int i, cudaStream_t stream) {
              const Product product{.weights = one_copy(pattern, i), .tokens = tokens, .x = x_.data(), .y = y_.data()};
              MUST(launch_expanded_product(product, shape_.rows, room, stream));
            }};
  }
  Contender expansion(size_t pattern, const DeviceArray<uint16_t>& room) {
    return {"expand", [this, pattern, &room](int i, cudaStream_t stream) {
              MUST(expand({one_copy(pattern, i), 0, shape_.rows, room.data()}, stream));
            }};
  }
  // Whether the GPU has room for such a split.
  bool takes(size_t pattern, int tokens, int split) {
    Product product = product_of(pattern, 0);
    product.tokens = tokens;
    const Status status = launch_wide_product(product, nullptr, {split, 0});
    MUST(cudaDeviceSynchronize());
    return status.is_ok();
  }
  // As many groups as the kernels for few tokens need.
  Contender narrow(size_t pattern, int tokens, const std::string& name) {
    return {name, [this, pattern, tokens](int i, cudaStream_t stream) {
              Product product = product_of(pattern, i);
              product.tokens = std::min(tokens, kMostFewRows);
              for (int done = 0; done < tokens; done += product.tokens) {
                product.x = x_.data() + static_cast<size_t>(done) * static_cast<size_t>(shape_.cols);
                MUST(launch_product(product, stream));
              }
            }};
  }

 private:
  Product product_of(size_t pattern, int i) {
    Product product{weights_[pattern].device, 1, 1, x_.data(), chosen_[static_cast<size_t>(i % kCopies)].data()};
    product.experts_settled = true;
    product.y = y_.data();
    return product;
  }

  DeviceTiles one_copy(size_t pattern, int i) {
    const Weights& weights = weights_[pattern];
    const int64_t copy = i % kCopies;
    DeviceTiles view = weights.device;
    view.count = 1;
    view.tile_bytes = static_cast<int64_t>(weights.host.tiles.size());
    // Starts count from the first copy.
    if (view.layout == TileLayout::kBitmap) {
      view.starts += copy * weights.host.tile_count();
    } else {
      view.tiles += copy * view.tile_bytes;
    }
    return view;
  }

  Shape shape_;
  Dense dense_;
  DeviceArray<uint16_t> x_;
  DeviceArray<uint16_t> y_;
  std::vector<Weights> weights_;
  std::vector<DeviceArray<int32_t>> chosen_;
};

void print(const Shape& shape, int tokens, const std::vector<Contender>& contenders) {
  const double flops = 2.0 * shape.rows * shape.cols * tokens;
  std::printf("| %dx%d | %d | %.1f (%.0f TFLOP/s) ", shape.rows, shape.cols, tokens, contenders[0].micros,
              flops / contenders[0].micros / 1e6);
  for (size_t i = 1; i < contenders.size(); ++i) {
    std::printf("| %s %.1f (%.2f) ", contenders[i].name.c_str(), contenders[i].micros,
                contenders[0].micros / contenders[i].micros);
  }
  std::printf("|\n");
  std::fflush(stdout);
}

void time_all(bool tune) {
  for (const Shape& shape : kShapes) {
    Bench bench(shape);
    for (const int tokens : {16, 32, 64, 128, 256, 1024, 8192}) {
      std::vector<Contender> contenders = {bench.cublas(tokens)};
      for (size_t p = 0; p < std::size(kPatterns); ++p) {
        const std::string& name = kPatterns[p].name;
        contenders.push_back(bench.wide(p, tokens, name));
        if (tokens <= 64) contenders.push_back(bench.narrow(p, tokens, "few"));
        if (!tune) continue;
        contenders.push_back(bench.wide(p, tokens, "alone", {1, 1}));
        contenders.push_back(bench.wide(p, tokens, "mates", {1, 2}));
        for (const int split : {2, 4, 5, 6, 7}) {
          if (tokens > 64 || !bench.takes(p, tokens, split)) continue;
          contenders.push_back(bench.wide(p, tokens, "split " + std::to_string(split), {split, 0}));
        }
        if (tokens <= 512) contenders.push_back(bench.wide(p, tokens, "two parts", {}, 2));
      }
      measure(contenders, tokens > 1024 ? 4 : 16, tokens > 1024 ? 5 : 9);
      print(shape, tokens, contenders);
    }
  }
}

// Through cuBLASLt.
void time_dense() {
  Result<DenseProducts> dense = DenseProducts::create();
  MUST(dense.status());
  for (const Shape& shape : kShapes) {
    Bench bench(shape, true);
    const DeviceArray<uint16_t> room(static_cast<size_t>(shape.rows) * static_cast<size_t>(shape.cols));
    const int64_t tiles = int64_t{shape.rows} * shape.cols * 2 / 4096;
    const DeviceArray<uint32_t> progress(std::vector<uint32_t>(static_cast<size_t>(expansion_words(tiles))));
    const ExpansionRoom on_the_way{room.data(), progress.data(), tiles};
    for (const int tokens : {512, 1024, 2048, 4096, 8192}) {
      for (size_t p = 0; p < std::size(kPatterns); ++p) {
        if (!is_expanded(kPatterns[p])) continue;
        std::vector<Contender> contenders = {bench.cublas(tokens), bench.wide(p, tokens, kPatterns[p].name),
                                             bench.through_lt(p, tokens, dense.value(), "through Lt"),
                                             bench.expanded(p, tokens, on_the_way)};
        if (tokens == 512) contenders.push_back(bench.expansion(p, room));
        measure(contenders, tokens > 1024 ? 4 : 16, tokens > 1024 ? 5 : 9);
        print(shape, tokens, contenders);
      }
    }
  }
}

// The experts of a layer, each with as many tokens.
void time_experts() {
  for (const Shape& shape : {Shape{1536, 2048, 128}, Shape{2048, 768, 128}}) {
    for (const Pattern& pattern : kPatterns) {
      const std::vector<uint16_t> values = random_weights(pattern, shape.rows, shape.cols);
      const Weights weights = pack(pattern, values, shape.rows, shape.cols, 1, shape.routed);
      const DeviceArray<int32_t> chosen(counted(shape.routed));
      for (const int tokens : {16, 32, 64, 128}) {
        const size_t rows = static_cast<size_t>(shape.routed) * static_cast<size_t>(tokens);
        const DeviceArray<uint16_t> x(random_bits(2 * rows * static_cast<size_t>(shape.cols)));
        DeviceArray<float> y(rows * static_cast<size_t>(shape.rows));
        std::vector<Contender> contenders;
        for (const int parts : {1, 2}) {
          for (const bool wide : {false, true}) {
            if (!wide && tokens * parts > kMostFewRows) continue;
            contenders.push_back({wide ? "wide" : "few", [&, parts, wide](int, cudaStream_t stream) {
                                    Product product{weights.device, shape.routed, tokens, x.data(), chosen.data()};
                                    product.parts = parts;
                                    product.y = y.data();
                                    product.output = OutputType::kF32;
                                    MUST(wide ? launch_wide_product(product, stream) : launch_product(product, stream));
                                  }});
            contenders.back().name += parts == 2 ? " x2" : "";
          }
        }
        measure(contenders, 4, 5);
        std::printf("| %dx%d x%d | %s | %d ", shape.rows, shape.cols, shape.routed, pattern.name.c_str(), tokens);
        for (const Contender& c : contenders) std::printf("| %s %.1f ", c.name.c_str(), c.micros);
        std::printf("|\n");
        std::fflush(stdout);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "all";
  g_seed = argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)) : std::random_device{}() % 1000000;
  cudaDeviceProp properties;
  MUST(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, seed %u\n", properties.name, g_seed);
  if ((mode == "check" || mode == "all") && !check_all()) return 1;
  if (mode == "time" || mode == "all") time_all(false);
  if (mode == "tune") time_all(true);
  if (mode == "dense" || mode == "all") time_dense();
  if (mode == "experts" || mode == "all") time_experts();
  return 0;
}
