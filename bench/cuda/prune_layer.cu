// Time of pruning Mixtral-8x7B-shaped layers on a GPU, step by step, with random weights and hidden states:
//   prune_layer [SEQUENCES 128] [TOKENS 2048] [FOLDER /tmp] [moe-pruner | ria | sparsegpt | cpu | survey | survey-all]
//     [LAYERS 1]
// `cpu` is MoE-Pruner with the layer run on the CPU; `survey` only surveys the experts, `survey-all` with their mean
// outputs and the losses of sets of four. Of several layers, which all have the same weights and inputs, the next one
// is loaded during the last forward. Then the time of the kernels that take most of it. CMake's ESPALIER_CUDA_BENCH
// builds it.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <future>
#include <string>

#include "checkpoint/mapped_file.h"
#include "harness.cuh"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/calibration.h"
#include "prune/layer_pruner.h"

using namespace espalier;

namespace {

constexpr int64_t kHidden = 4096;
constexpr int64_t kWidth = 14336;
constexpr int kExperts = 8;
constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

uint64_t hash(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Near normal: the sum of four uniform numbers.
float random_float(uint64_t seed) {
  const uint64_t bits = hash(seed);
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(bits >> (16 * i) & 0xffff) / 32768.0f - 1.0f;
  return sum;
}

[[noreturn]] void fail(const std::string& what) {
  std::perror(what.c_str());
  std::exit(1);
}

// A file of `count` elements, written through memory by all threads.
template <class T, class Value>
void write_file(ThreadPool& pool, const std::string& path, int64_t count, const Value& value) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ::ftruncate(file, static_cast<off_t>(bytes)) != 0) fail(path);
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) fail("mmap");
  pool.parallel_for(count, 1 << 20, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) static_cast<T*>(memory)[i] = value(i);
  });
  ::munmap(memory, bytes);
  ::close(file);
}

class Layer {
 public:
  Layer(ThreadPool& pool, const std::string& path) {
    LayerSpec& s = spec;
    const auto matrix = [&](int64_t rows, int64_t cols, WeightRef& ref) {
      ref = {.name = "weight", .dtype = DType::kBF16, .rows = rows, .cols = cols, .values = {}, .bitmask = {}};
      ref.values.offset = elements_ * 2;
      ref.values.bytes = rows * cols * 2;
      elements_ += rows * cols;
      refs_.push_back(&ref);
    };
    s.attention.heads = kHeads;
    s.attention.kv_heads = kKvHeads;
    s.attention.head_dim = kHeadDim;
    s.attention.scale = 1 / std::sqrt(static_cast<float>(kHeadDim));
    matrix(1, kHidden, s.attention_norm);
    matrix(1, kHidden, s.feed_forward_norm);
    matrix(kHeads * kHeadDim, kHidden, s.attention.q);
    matrix(kKvHeads * kHeadDim, kHidden, s.attention.k);
    matrix(kKvHeads * kHeadDim, kHidden, s.attention.v);
    matrix(kHidden, kHeads * kHeadDim, s.attention.o);
    s.feed_forward.resize(1);
    FeedForwardPartSpec& part = s.feed_forward[0];
    part.kind = FeedForwardPartSpec::Kind::kRouted;
    part.routing.top_k = 2;
    part.routing.renormalise = true;
    matrix(kExperts, kHidden, part.router);
    part.experts.resize(kExperts);
    for (int e = 0; e < kExperts; ++e) {
      part.expert_of_row.push_back(e);
      matrix(kWidth, kHidden, part.experts[static_cast<size_t>(e)].gate);
      matrix(kWidth, kHidden, part.experts[static_cast<size_t>(e)].up);
      matrix(kHidden, kWidth, part.experts[static_cast<size_t>(e)].down);
    }
    write_file<uint16_t>(pool, path, elements_, [](int64_t i) {
      return float_to_bf16(i < 2 * kHidden ? 1.0f : 0.02f * random_float(static_cast<uint64_t>(i)));
    });
    const auto file = MappedFile::open(path);
    MUST(file.status());
    for (WeightRef* ref : refs_) ref->values.file = file.value();
  }

  LayerSpec spec;

 private:
  int64_t elements_ = 0;
  std::vector<WeightRef*> refs_;
};

// Milliseconds of `work` on the device, the median of five.
template <class Work>
double measure(const Work& work) {
  std::vector<float> times;
  cudaEvent_t begin, end;
  MUST(cudaEventCreate(&begin));
  MUST(cudaEventCreate(&end));
  for (int i = 0; i < 6; ++i) {
    MUST(cudaEventRecord(begin));
    work();
    MUST(cudaEventRecord(end));
    MUST(cudaEventSynchronize(end));
    float ms = 0;
    MUST(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[2]);
}

void measure_kernels() {
  constexpr int kTokens = 4096;
  constexpr int kSlots = 2 * kTokens;
  const auto bf16 = [](size_t size, float scale) {
    std::vector<uint16_t> bits(size);
    for (size_t i = 0; i < size; ++i) bits[i] = float_to_bf16(scale * random_float(i));
    return bits;
  };
  const bench::DeviceArray<uint16_t> weights(bf16(kExperts * kWidth * kHidden, 0.02f));
  const bench::DeviceArray<uint16_t> x(bf16(size_t{kSlots} * cuda::kGemmParts * kWidth, 1));
  const bench::DeviceArray<float> y(size_t{kSlots} * kWidth);
  for (const auto& [depth, cols] : {std::pair{kHidden, kWidth}, std::pair{kWidth, kHidden}}) {
    std::vector<cuda::GemmGroup> groups(kExperts);
    for (int e = 0; e < kExperts; ++e) {
      groups[static_cast<size_t>(e)] = {weights.data() + e * kWidth * kHidden, e * kSlots / kExperts, kSlots / kExperts,
                                        0};
    }
    const int tiles = cuda::place_tiles(groups, cols);
    const bench::DeviceArray<cuda::GemmGroup> device(groups);
    const double ms = measure([&] {
      MUST(cuda::gemm({.groups = device.data(),
                       .group_count = kExperts,
                       .tiles = tiles,
                       .x = x.data(),
                       .depth = static_cast<int32_t>(depth),
                       .cols = static_cast<int32_t>(cols),
                       .y = y.data()},
                      nullptr));
    });
    const double flop = 2.0 * kSlots * kWidth * kHidden;
    std::printf("gemm of %d rows by 8 experts of %ld x %ld: %.2f ms, %.0f TFLOP/s, %.0f of the tensor cores\n", kSlots,
                cols, depth, ms, flop / ms / 1e9, cuda::kGemmParts * flop / ms / 1e9);
  }
  {
    std::vector<cuda::GemmGroup> group = {{x.data(), 0, static_cast<int32_t>(kWidth), 0}};
    const int tiles = cuda::place_tiles(group, kWidth);
    const bench::DeviceArray<cuda::GemmGroup> device(group);
    const bench::DeviceArray<float> gram(kWidth * kWidth);
    MUST(cudaMemset(gram.data(), 0, gram.size() * sizeof(float)));
    const double ms = measure([&] {
      MUST(cuda::gemm({.groups = device.data(),
                       .group_count = 1,
                       .tiles = tiles,
                       .x = x.data(),
                       .depth = 1024,
                       .cols = static_cast<int32_t>(kWidth),
                       .weight_parts = cuda::kGemmParts,
                       .y = gram.data(),
                       .accumulate = true,
                       .upper = true},
                      nullptr));
    });
    std::printf("Gram matrix of %ld columns, 1024 rows, upper triangle: %.2f ms\n", kWidth, ms);
  }
  {
    const bench::DeviceArray<float> gates(std::vector<float>(kSlots, 0.5f));
    const bench::DeviceArray<double> sums(std::vector<double>(kExperts * kWidth, 0.0));
    std::vector<cuda::GemmGroup> groups(kExperts);
    for (int e = 0; e < kExperts; ++e)
      groups[static_cast<size_t>(e)] = {nullptr, e * kSlots / kExperts, kSlots / kExperts, 0};
    const bench::DeviceArray<cuda::GemmGroup> device(groups);
    const double squares = measure([&] {
      MUST(cuda::add_squares({.groups = device.data(),
                              .group_count = kExperts,
                              .x = y.data(),
                              .gates = gates.data(),
                              .cols = kWidth,
                              .sums = sums.data()},
                             nullptr));
    });
    const bench::DeviceArray<float> up(size_t{kSlots} * kWidth);
    MUST(cudaMemset(up.data(), 0, up.size() * sizeof(float)));
    const double gate = measure([&] {
      MUST(cuda::gate_rows({.rows = kSlots,
                            .cols = kWidth,
                            .gate = y.data(),
                            .up = up.data(),
                            .out = {x.data(), cuda::kGemmParts, static_cast<int>(kWidth)}},
                           nullptr));
    });
    std::printf("of %d rows of %ld: squared lengths %.2f ms, SwiGLU %.2f ms\n", kSlots, kWidth, squares, gate);
  }
  {
    constexpr int kLength = 2048;
    std::vector<int32_t> positions, tables, blocks;
    for (int t = 0; t < kTokens; ++t) {
      positions.push_back(t % kLength);
      tables.push_back(t / kLength * kLength / cuda::kKvTokens);
    }
    for (int b = 0; b < kTokens / cuda::kKvTokens; ++b) blocks.push_back(b);
    const bench::DeviceArray<int32_t> positions_device(positions), tables_device(tables), blocks_device(blocks);
    const bench::DeviceArray<float> cache(size_t{kTokens} * kKvHeads * kHeadDim * 2);
    MUST(cudaMemset(cache.data(), 0, cache.size() * sizeof(float)));
    const double ms = measure([&] {
      MUST(cuda::attend({.places = {kTokens, positions_device.data(), tables_device.data(), blocks_device.data()},
                         .shape = {kHeads, kKvHeads, kHeadDim},
                         .scale = 0.1f,
                         .cache = {cache.data(), cache.data() + cache.size() / 2, false},
                         .queries = y.data(),
                         .out = {x.data(), cuda::kGemmParts, kHeads * kHeadDim}},
                        nullptr));
    });
    std::printf("attention of %d rows in sequences of %d: %.2f ms\n", kTokens, kLength, ms);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const auto argument = [&](int i, const char* otherwise) { return std::string(count > i ? arguments[i] : otherwise); };
  const int64_t sequences = std::stol(argument(1, "128"));
  const int64_t length = std::stol(argument(2, "2048"));
  const std::string folder = argument(3, "/tmp");
  const std::string method = argument(4, "moe-pruner");
  const int layers = std::stoi(argument(5, "1"));
  const bool gram = method == "sparsegpt";
  const bool cpu = method == "cpu";
  const auto pool = ThreadPool::shared(0);
  const Layer layer(*pool, folder + "/prune_layer.weights");
  const std::string input = folder + "/prune_layer.input";
  write_file<float>(*pool, input, sequences * length * kHidden,
                    [](int64_t i) { return random_float(static_cast<uint64_t>(i) + (uint64_t{1} << 40)); });
  RopeSpec rope;
  for (int i = 0; i < kHeadDim / 2; ++i) rope.inverse_frequencies.push_back(std::pow(1e6f, -2.0f * i / kHeadDim));
  if (!cpu) MUST(cudaFree(nullptr));
  std::printf("%d threads, %ld x %ld tokens, %s\n", pool->size(), sequences, length, method.c_str());

  double last = now();
  const auto step = [&](const char* name) {
    std::printf("%-44s %7.2f s\n", name, now() - last);
    std::fflush(stdout);
    last = now();
  };
  // As a run does it; `told` is called after each step.
  const auto load = [&](const auto& told) {
    auto loaded = LayerPruner::load(0, layer.spec, rope, kHidden, 1e-5f, false, cpu ? std::nullopt : std::optional(0));
    MUST(loaded.status());
    told("load, check for NaN, pack");
    MUST(loaded.value()->measure(nullptr).status());
    told("measure the dense weights");
    MUST(loaded.value()->prepare());
    told("upload");
    return std::move(loaded.value());
  };
  ForwardRequest dense;
  dense.input = input;
  dense.lengths.assign(static_cast<size_t>(sequences), length);
  ForwardRequest last_forward = dense;
  last_forward.output = folder + "/prune_layer.output";
  dense.collect = StatisticsRequest{.gram = gram, .pooled = gram, .router_weighted = true, .scratch = folder + "/s"};
  const Budget half = Budget::unstructured(0.5);
  const MethodPlan plan = gram              ? MethodPlan::sparsegpt(half)
                          : method == "ria" ? MethodPlan::relative(half)
                                            : MethodPlan::activation(half);

  double begin = now();
  std::unique_ptr<LayerPruner> pruner = load(step);
  if (method.starts_with("survey")) {
    const bool runs_all = method == "survey-all";
    const SurveyOptions options{.logit_products = false, .mean_outputs = runs_all, .keep = runs_all ? 4 : 0};
    dense.collect.reset();
    MUST(pruner->survey(dense, options, {}, nullptr).status());
    step("survey");
  }
  for (int l = 0; l < layers && !method.starts_with("survey"); ++l) {
    MUST(pruner->forward(dense, {}, nullptr));
    step("dense forward with statistics");
    MUST(pruner->prune(plan, {}, nullptr).status());
    step("weights chosen");
    MUST(pruner->measure(nullptr).status());
    step("measure the pruned weights");
    std::future<std::unique_ptr<LayerPruner>> next;
    if (l + 1 < layers) {
      next = std::async(cpu ? std::launch::deferred : std::launch::async, [&] { return load([](const char*) {}); });
    }
    MUST(pruner->forward(last_forward, {}, nullptr));
    step("pruned forward, hidden states written");
    for (int e = 0; e < kExperts; ++e) {
      for (const Role role : kRoles) MUST(pruner->tensor({0, e, role}).status());
    }
    step("tensors for the checkpoint");
    pruner.reset();
    if (next.valid()) {
      pruner = next.get();
      step("the next layer is there");
    }
    std::printf("%-44s %7.2f s\n", "together", now() - begin);
    begin = now();
  }
  if (!cpu) measure_kernels();
  for (const char* name : {"weights", "input", "output"}) ::unlink((folder + "/prune_layer." + name).c_str());
  return 0;
}
