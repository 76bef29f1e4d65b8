// Decode of a whole model against what reading its active weights takes: the engine's own steps, a call of the host for
// each, greedy. Weights are random, of real shapes, packed once and copied to every expert and layer, so that each lies
// in memory of its own.
//
//   ./decode_model [qwen3-30b-a3b|mixtral-8x7b|mixtral-8x22b] [PATTERN] [context] [steps] [batch,…] [layers] [parts]
//     [gpu,…]
//   built by CMake with -DESPALIER_CUDA_BENCH=ON; PATTERN is dense, 2:4, 16:32 or bitmap of bf16, or int8 or 2:4-int8.
//   `parts` is of activations (2: float32). Each of the GPUs listed is a stage with an equal share of the layers; one
//   may be there several times.
#include <chrono>
#include <cmath>
#include <random>
#include <string>

#include "engine/cuda/model_engine.h"
#include "engine/cuda/upload.h"
#include "harness.cuh"
#include "kernels/cuda/device.h"
#include "sparse/packed_matrix.h"

using namespace espalier;
using namespace espalier::cuda;

namespace {

struct Shape {
  const char* name;
  int hidden, layers, heads, kv_heads, head_dim, width, experts, top_k, vocabulary;
  bool head_norms;
};
const Shape kShapes[] = {{"qwen3-30b-a3b", 2048, 48, 32, 4, 128, 768, 128, 8, 151936, true},
                         {"mixtral-8x7b", 4096, 32, 32, 8, 128, 14336, 8, 2, 32000, false},
                         {"mixtral-8x22b", 6144, 56, 48, 8, 128, 16384, 8, 2, 32768, false}};

ThreadPool& pool() {
  static ThreadPool threads(0);
  return threads;
}

// Random bf16 bits with the zeros of a pattern.
std::vector<uint16_t> random_matrix(int64_t rows, int64_t cols, const std::string& pattern) {
  std::vector<uint16_t> bits(static_cast<size_t>(rows * cols));
  const float scale = 1 / std::sqrt(static_cast<float>(cols));
  pool().parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    std::minstd_rand random(static_cast<unsigned>(begin * 7919 + rows + 1));
    std::uniform_real_distribution<float> uniform(-1.7f, 1.7f);
    for (int64_t i = begin * cols; i < end * cols; ++i)
      bits[static_cast<size_t>(i)] = float_to_bf16(uniform(random) * scale);
    const int m = pattern == "2:4" ? 4 : pattern == "16:32" ? 32 : 1;
    if (pattern == "dense") return;
    for (int64_t first = begin * cols; first < end * cols; first += m) {
      int left = m / 2;
      for (int i = 0; i < m; ++i) {
        const bool kept = m == 1 ? random() % 2 == 0 : static_cast<int>(random() % static_cast<unsigned>(m - i)) < left;
        if (kept) {
          --left;
        } else {
          bits[static_cast<size_t>(first + i)] = 0;
        }
      }
    }
  });
  return bits;
}

// Rounds as the engine does for weights of int8.
Result<TiledWeights> tile_rounded(const MatrixSource& source) {
  const Result<PackedMatrix> packed = PackedMatrix::pack(pool(), {Storage::kDense, Values::kInt8}, source);
  MUST(packed.status());
  std::vector<int8_t> codes(static_cast<size_t>(source.rows() * source.cols()));
  std::vector<uint16_t> scales(static_cast<size_t>(source.rows() * packed.value().groups()));
  packed.value().unpack_codes(pool(), codes.data(), scales.data());
  const CodeMatrix matrix(source.rows(), source.cols(), codes.data(), scales.data());
  return tile_codes(pool(), choose_code_tiles(pool(), {&matrix, 1}), {&matrix, 1});
}

bool is_int8(const std::string& pattern) { return pattern.ends_with("int8"); }

TiledWeights tile(int64_t rows, int64_t cols, const std::string& pattern) {
  const std::string zeros = pattern == "int8" ? "dense" : pattern.substr(0, pattern.find('-'));
  const std::vector<uint16_t> bits = random_matrix(rows, cols, zeros);
  const MatrixSource source(DType::kBF16, rows, cols, bits.data());
  if (is_int8(pattern)) {
    Result<TiledWeights> rounded = tile_rounded(source);
    MUST(rounded.status());
    return std::move(rounded.value());
  }
  const TileChoice choice = choose_tiles(pool(), {&source, 1});
  Result<TiledWeights> tiled = tile_weights(pool(), choice.layout, {&source, 1}, choice.n);
  MUST(tiled.status());
  return std::move(tiled.value());
}

template <class T>
DeviceMemory on_device(const std::vector<T>& values) {
  Result<DeviceMemory> memory = DeviceMemory::copy_of(values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
  MUST(memory.status());
  return std::move(memory.value());
}

DeviceMemory room(int64_t bytes) {
  Result<DeviceMemory> memory = DeviceMemory::allocate(bytes);
  MUST(memory.status());
  return std::move(memory.value());
}

// `count` matrices with the same weights, each in memory of its own.
Matrices copies(const TiledWeights& one, int count) {
  Matrices out;
  const auto size = static_cast<int64_t>(one.tiles.size());
  out.tiles = room(size * count);
  for (int i = 0; i < count; ++i) {
    uint8_t* to = out.tiles.as<uint8_t>() + i * size;
    const void* from = i == 0 ? static_cast<const void*>(one.tiles.data()) : out.tiles.data();
    MUST(cudaMemcpy(to, from, static_cast<size_t>(size), i == 0 ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice));
  }
  std::vector<uint32_t> starts;
  for (int i = 0; i < count && !one.starts.empty(); ++i) {
    for (size_t t = i == 0 ? 0 : 1; t < one.starts.size(); ++t) {
      starts.push_back(one.starts[t] + static_cast<uint32_t>(size / 16 * i));
    }
  }
  out.starts = on_device(starts);
  out.view = describe_tiles(one, out.tiles.as<uint8_t>(), out.starts.as<uint32_t>());
  out.view.count = count;
  return out;
}

// A stage: layers [first, last) of so many.
Model build(const Shape& shape, const std::string& pattern, int first, int last, int layers, int64_t kv_blocks,
            int parts) {
  Model model;
  model.hidden = shape.hidden;
  model.vocabulary = shape.vocabulary;
  model.norm_epsilon = 1e-6f;
  model.parts = parts;
  if (first == 0) model.embedding.memory = on_device(random_matrix(shape.vocabulary, shape.hidden, "dense"));
  std::vector<float> frequencies;
  for (int i = 0; i < shape.head_dim / 2; ++i) {
    frequencies.push_back(std::pow(1e6f, -2.0f * static_cast<float>(i) / static_cast<float>(shape.head_dim)));
  }
  model.rope_half = static_cast<int>(frequencies.size());
  model.inverse_frequencies = on_device(frequencies);
  const std::vector<float> ones(static_cast<size_t>(shape.hidden), 1.0f);
  const std::string rest = is_int8(pattern) ? "int8" : "dense";
  if (last == layers) {
    model.final_norm = on_device(ones);
    model.head = copies(tile(shape.vocabulary, shape.hidden, rest), 1);
  }
  const int q_width = shape.heads * shape.head_dim;
  const int kv_width = shape.kv_heads * shape.head_dim;
  const TiledWeights qkv = tile(q_width + 2 * kv_width, shape.hidden, rest);
  const TiledWeights output = tile(shape.hidden, q_width, rest);
  const TiledWeights gate_up = tile(2 * shape.width, shape.hidden, pattern);
  const TiledWeights down = tile(shape.hidden, shape.width, pattern);
  std::vector<int32_t> map;
  for (int e = 0; e < shape.experts; ++e) map.push_back(e);
  for (int i = first; i < last; ++i) {
    Layer& layer = model.layers.emplace_back();
    layer.attention_norm = on_device(ones);
    layer.feed_forward_norm = on_device(ones);
    layer.heads = {shape.heads, shape.kv_heads, shape.head_dim};
    layer.scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
    layer.qkv = copies(qkv, 1);
    layer.output = copies(output, 1);
    if (shape.head_norms) {
      layer.q_norm = on_device(std::vector<float>(static_cast<size_t>(shape.head_dim), 1.0f));
      layer.k_norm = on_device(std::vector<float>(static_cast<size_t>(shape.head_dim), 1.0f));
    }
    layer.keys = room(kv_blocks * kKvTokens * kv_width * 4);
    layer.values = room(kv_blocks * kKvTokens * kv_width * 4);
    FeedForwardPart& part = layer.feed_forward.emplace_back();
    part.is_routed = true;
    part.experts = shape.experts;
    part.width = shape.width;
    part.router_rows = shape.experts;
    part.routing.top_k = shape.top_k;
    part.routing.renormalise = true;
    part.router.memory = on_device(random_matrix(shape.experts, shape.hidden, "dense"));
    part.expert_of_row = on_device(map);
    part.gate_up = copies(gate_up, shape.experts);
    part.down = copies(down, shape.experts);
  }
  return model;
}

StepRequest request_of(int batch, int64_t tokens, int64_t position, int64_t blocks_each, std::mt19937& random,
                       const Shape& shape) {
  StepRequest request;
  request.batch.rows = batch * tokens;
  for (int s = 0; s < batch; ++s) {
    Slice slice{s * tokens, tokens, position, {}};
    for (int64_t b = 0; b * kKvTokens < position + tokens; ++b) {
      slice.blocks.push_back(static_cast<int32_t>(s * blocks_each + b));
    }
    request.batch.slices.push_back(std::move(slice));
    for (int64_t i = 0; i < tokens; ++i) {
      request.tokens.push_back(static_cast<int32_t>(random() % static_cast<unsigned>(shape.vocabulary)));
    }
    request.samples.push_back({static_cast<int32_t>((s + 1) * tokens - 1), {}, {}, 0});
  }
  return request;
}

double seconds_of(Engine& engine, const StepRequest& request) {
  const auto begin = std::chrono::steady_clock::now();
  const Result<StepResult> result = engine.step(request, nullptr);
  MUST(result.status());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// GB/s of a plain read of memory larger than the caches, the best of several.
double read_ceiling() {
  const int64_t bytes = int64_t{2} << 30;
  const DeviceMemory memory = room(bytes);
  bench::DeviceArray<uint32_t> sink(1);
  MUST(cudaMemset(memory.data(), 1, static_cast<size_t>(bytes)));
  double best = 0;
  for (int i = 0; i < 6; ++i) {
    MUST(cudaDeviceSynchronize());
    const auto begin = std::chrono::steady_clock::now();
    for (int r = 0; r < 4; ++r) bench::read_kernel<<<132 * 4, 512>>>(memory.as<uint4>(), bytes / 16, sink.data());
    MUST(cudaDeviceSynchronize());
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, 4.0 * static_cast<double>(bytes) / seconds);
  }
  return best / 1e9;
}

// Of a list with commas.
std::vector<int> numbers(std::string list) {
  std::vector<int> out;
  for (list += ","; !list.empty(); list.erase(0, list.find(',') + 1)) out.push_back(std::stoi(list));
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, const char* other) { return std::string(argc > i ? argv[i] : other); };
  const Shape* shape = &kShapes[0];
  for (const Shape& known : kShapes) {
    if (argument(1, shape->name) == known.name) shape = &known;
  }
  const std::string pattern = argument(2, "2:4");
  const int64_t context = std::stol(argument(3, "1024"));
  const int steps = std::stoi(argument(4, "64"));
  const std::vector<int> batches = numbers(argument(5, "1"));
  const int layers = argc > 6 ? std::stoi(argv[6]) : shape->layers;
  const int parts = argc > 7 ? std::stoi(argv[7]) : 2;
  const std::vector<int> gpus = numbers(argument(8, "0"));
  MUST(cudaSetDevice(gpus.front()));
  const double ceiling = read_ceiling();
  const int most = *std::max_element(batches.begin(), batches.end());
  const int64_t blocks_each = (context + steps + 16) / kKvTokens + 1;
  std::vector<StageModel> stages;
  const auto count = static_cast<int>(gpus.size());
  for (int s = 0; s < count; ++s) {
    const int gpu = gpus[static_cast<size_t>(s)];
    MUST(cudaSetDevice(gpu));
    stages.push_back(
        {gpu, build(*shape, pattern, layers * s / count, layers * (s + 1) / count, layers, blocks_each * most, parts)});
  }
  Result<std::unique_ptr<Engine>> made =
      make_engine(ThreadPool::shared(0), {shape->vocabulary, 1 << 20, blocks_each * most}, std::move(stages));
  MUST(made.status());
  Engine& engine = *made.value();
  const EngineInfo& info = engine.info();
  const double active = static_cast<double>(info.active_bytes);
  std::printf(
      "%s, %d layers on GPU %s, experts %s, %.2f GB, %.3f GB active, activations %s, context %ld; read ceiling %.0f "
      "GB/s\n",
      shape->name, layers, argument(8, "0").c_str(), info.formats.front().c_str(),
      static_cast<double>(info.weight_bytes) / 1e9, active / 1e9, parts == 2 ? "float32" : "bf16",
      static_cast<long>(context), ceiling);
  std::mt19937 random(1);
  const double prefill = [&] {
    double total = 0;
    for (int64_t done = 0; done < context; done += 512) {
      const int64_t tokens = std::min<int64_t>(512, context - done);
      for (int s = 0; s < most; ++s) {
        StepRequest request = request_of(1, tokens, done, blocks_each, random, *shape);
        for (int32_t& block : request.batch.slices[0].blocks) block += static_cast<int32_t>(s * blocks_each);
        const double seconds = seconds_of(engine, request);
        if (s == 0) total += seconds;
      }
    }
    return static_cast<double>(context) / total;
  }();
  std::printf("prefill: %.0f tokens/s\n", prefill);
  for (const int batch : batches) {
    std::vector<double> times;
    for (int i = 0; i < steps; ++i) {
      times.push_back(seconds_of(engine, request_of(batch, 1, context + i, blocks_each, random, *shape)));
    }
    const double seconds = median(times);
    std::printf("batch %d: %.3f ms a step, %.1f tokens/s", batch, 1000 * seconds, batch / seconds);
    if (batch == 1) std::printf(", %.0f %% of the bandwidth bound", 100 * active / seconds / 1e9 / ceiling);
    std::printf("\n");
  }
  return 0;
}
