// Decode products against cuBLAS. First every layout is checked against float64 with fresh random inputs, then timed:
// replayed CUDA graphs, weights from memory (consecutive launches read different copies, more than the L2 cache holds),
// medians, all contenders in turns in one run. "Read" is a plain read of the same bytes.
//
//   bench/cuda/build.sh decode_products && ./decode_products [check|sanitize|time|tune|profile] [seed] [weights]
//
// `weights` is one of "2:4", "16:32", "bitmap 50 %", …; without, all are measured.
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>

#include "products.cuh"

using namespace espalier;
using namespace espalier::cuda;
using namespace bench;

namespace {

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
  reference_kernel<<<dim3(static_cast<unsigned>(shape.rows), static_cast<unsigned>(pairs)), 128>>>(
      reinterpret_cast<const __nv_bfloat16*>(w.data()), reinterpret_cast<const __nv_bfloat16*>(x.data()),
      chosen_device.data(), rows_device.data(), reference.data(), shape.rows, shape.cols, tokens);
  MUST(cudaGetLastError());
  const std::vector<double> expected = reference.host();

  Product product{weights.device, shape.routed, tokens, x.data(), chosen_device.data()};
  product.inputs = rows_device.data();
  double worst = 0;
  // The tensor cores cut off what a sum in float32 cannot hold, at every step of 16 or 32 inputs.
  const double limit = 2e-6 + 2e-9 * shape.cols;
  for (const int split : {0, 1, 2}) {
    for (const OutputType type : {OutputType::kF32, OutputType::kBf16}) {
      DeviceArray<uint8_t> y(outputs * 4);
      y.poison();
      product.y = y.data();
      product.output = type;
      MUST(launch_product(product, nullptr, {split, split == 2 ? 3 : 0}));
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

std::vector<Pattern> g_patterns = {kTwoFour, kBalanced, kBitmap50, kBitmap70, kTwoFourInt8, kDenseInt8};

bool is_two_four(const Pattern& pattern) {
  return pattern.layout == TileLayout::kTwoFour || pattern.layout == TileLayout::kTwoFourInt8;
}

enum class Extent { kFew, kSmall, kLarge };

void check_all(Extent extent) {
  const bool large = extent == Extent::kLarge;
  const bool few = extent == Extent::kFew;
  const std::vector<Shape> shapes =
      few     ? std::vector<Shape>{{64, 512, 3}, {23, 96, 2}}
      : large ? std::vector<Shape>{{14336, 4096, 1}, {4096, 14336, 1}, {1536, 2048, 8}, {2048, 768, 8}}
              : std::vector<Shape>{{16, 128, 1}, {64, 512, 3}, {23, 96, 2}, {200, 1056, 4}, {1, 32, 1}};
  std::vector<Pattern> patterns = g_patterns;
  if (patterns.size() > 1) patterns.push_back(kUneven);
  for (const Pattern& pattern : patterns) {
    double worst = 0;
    for (const Shape& shape : shapes) {
      for (const int tokens : {1, 2, 5, 8, 9, 16}) {
        if ((large && tokens != 1 && tokens != 8 && tokens != 16) || (few && tokens % 8 != 1)) continue;
        worst = std::max(worst, check(pattern, shape, shape.routed == 1 ? 1 : 10, tokens));
      }
    }
    std::printf("checked: %s, relative error to float64 at most %.1e\n", pattern.name.c_str(), worst);
  }
}

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

  Status launch(const Weights& w, int tokens, const ProductTuning& tuning, int i, cudaStream_t stream) {
    Product product{w.device, shape.routed, tokens, x.data(), chosen[static_cast<size_t>(i)].data()};
    product.experts_settled = true;
    product.y = y.data();
    return launch_product(product, stream, tuning);
  }

  bench::Contender ours(const Pattern& pattern, int tokens, const ProductTuning& tuning, const std::string& name) {
    const Weights& w = weights(pattern);
    return {name,
            [this, &w, tokens, tuning](int i, cudaStream_t stream) { MUST(launch(w, tokens, tuning, i, stream)); },
            w.bytes_each * shape.routed};
  }

  // Not every number of warps can be split in every way.
  bool allows(const Pattern& pattern, int tokens, const ProductTuning& tuning) {
    const Status status = launch(weights(pattern), tokens, tuning, 0, nullptr);
    if (status.code() != Code::kUsage) MUST(status);
    MUST(cudaDeviceSynchronize());
    return status.is_ok();
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
    for (const int tokens : {1, 4, 8, 16}) {
      for (const Pattern& pattern : g_patterns) {
        if (!is_two_four(pattern) && tokens == 4) continue;
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
    for (const int tokens : {1, 8, 16}) {
      for (const Pattern& pattern : g_patterns) {
        if (tokens > 8 && !is_two_four(pattern)) continue;
        std::vector<bench::Contender> contenders;
        std::vector<Way> ways = {{"default", {}}, {"3 stages", {0, 3}}, {"4 stages", {0, 4}}, {"split 2", {2}}};
        for (const Way& way : ways) {
          if (!bench.allows(pattern, tokens, way.tuning)) continue;
          contenders.push_back(bench.ours(pattern, tokens, way.tuning, way.name));
        }
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
  for (const int tokens : {1, 8, 16}) {
    for (const Pattern& pattern : g_patterns) {
      bench.ours(pattern, tokens, {}, pattern.name).launch(0, nullptr);
    }
  }
  MUST(cudaDeviceSynchronize());
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "all";
  g_seed = argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)) : std::random_device{}() % 1000000;
  if (argc > 3) {
    std::erase_if(g_patterns, [&](const Pattern& pattern) { return pattern.name != argv[3]; });
    if (g_patterns.empty()) {
      std::fprintf(stderr, "no weights are called %s\n", argv[3]);
      return 1;
    }
  }
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
