// A model that one GPU has no room for goes to several, or is refused with what it would take.
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>

#include "engine/cuda/cuda_engine.h"
#include "gpu.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::require;

namespace {

constexpr int kHidden = 128;
constexpr int kHeads = 4;
constexpr int kHeadDim = 32;
constexpr int kWidth = 64;
constexpr int kExperts = 4;
constexpr int kLayers = 4;
constexpr int kVocabulary = 96;
constexpr int64_t kLayerBytes = int64_t{512} << 20;  // of the KV cache of a layer, beside which weights are nothing
constexpr int64_t kBlocks = kLayerBytes / (2 * kKvBlock * kHeads * kHeadDim * 4);

// A file of random bf16 numbers, of which weights are parts.
class RandomFile {
  static constexpr int64_t kNumbers = 2 * kHidden * kHidden;

 public:
  RandomFile()
      : path_(std::filesystem::temp_directory_path() / ("espalier-placement-" + std::to_string(test::generator()()))) {
    std::ofstream out(path_, std::ios::binary);
    for (const float value : floats(kNumbers, 0.1f)) {
      const uint16_t bits = float_to_bf16(value);
      out.write(reinterpret_cast<const char*>(&bits), sizeof(bits));
    }
    out.close();
    REQUIRE(out.good());
    auto opened = MappedFile::open(path_);
    require(opened.status());
    file_ = opened.value();
  }
  ~RandomFile() { std::filesystem::remove(path_); }
  RandomFile(const RandomFile&) = delete;
  RandomFile& operator=(const RandomFile&) = delete;

  WeightRef weight(int64_t rows, int64_t cols) const {
    const int64_t first = draw(0, static_cast<int>(kNumbers - rows * cols));
    return {"weight", DType::kBF16, rows, cols, {file_, 2 * first, 2 * rows * cols}, {}};
  }

 private:
  std::string path_;
  std::shared_ptr<MappedFile> file_;
};

ModelSpec random_spec(const RandomFile& file) {
  ModelSpec spec;
  spec.hidden_size = kHidden;
  spec.vocabulary_size = kVocabulary;
  spec.max_positions = 512;
  for (int i = 0; i < kHeadDim / 2; ++i) {
    spec.rope.inverse_frequencies.push_back(std::pow(1e4f, -2.0f * static_cast<float>(i) / kHeadDim));
  }
  spec.embedding = file.weight(kVocabulary, kHidden);
  spec.final_norm = file.weight(1, kHidden);
  spec.head = file.weight(kVocabulary, kHidden);
  for (int i = 0; i < kLayers; ++i) {
    LayerSpec& layer = spec.layers.emplace_back();
    layer.attention_norm = file.weight(1, kHidden);
    layer.feed_forward_norm = file.weight(1, kHidden);
    AttentionSpec& attention = layer.attention;
    attention.heads = attention.kv_heads = kHeads;
    attention.head_dim = kHeadDim;
    attention.scale = 0.2f;
    for (WeightRef* weight : {&attention.q, &attention.k, &attention.v, &attention.o}) {
      *weight = file.weight(kHeads * kHeadDim, kHidden);
    }
    FeedForwardPartSpec& part = layer.feed_forward.emplace_back();
    part.kind = FeedForwardPartSpec::Kind::kRouted;
    part.router = file.weight(kExperts, kHidden);
    part.routing.top_k = 2;
    for (int e = 0; e < kExperts; ++e) {
      part.expert_of_row.push_back(e);
      part.experts.push_back(
          {file.weight(kWidth, kHidden), file.weight(kWidth, kHidden), file.weight(kHidden, kWidth)});
    }
  }
  return spec;
}

Result<std::unique_ptr<Engine>> load(const ModelSpec& spec, std::vector<int> gpus) {
  EngineOptions options;
  options.gpus = std::move(gpus);
  options.kv_blocks = kBlocks;
  return load_engine(spec, options, {}, nullptr);
}

std::vector<float> logits_of(Engine& engine, const std::vector<int32_t>& tokens) {
  StepRequest request;
  request.tokens = tokens;
  request.batch.rows = static_cast<int64_t>(tokens.size());
  std::vector<int32_t> blocks(tokens.size() / kKvBlock + 1);
  std::iota(blocks.begin(), blocks.end(), 0);
  request.batch.slices.push_back({0, request.batch.rows, 0, blocks});
  request.logits = {0, static_cast<int32_t>(tokens.size() - 1)};
  const Result<StepResult> result = engine.step(request, nullptr);
  require(result.status());
  return result.value().logits;
}

// Leaves so much of the first device's memory.
DeviceMemory leave(int64_t bytes) {
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  size_t free = 0;
  size_t total = 0;
  REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
  Result<DeviceMemory> memory = DeviceMemory::allocate(static_cast<int64_t>(free) - bytes);
  require(memory.status());
  return std::move(memory.value());
}

}  // namespace

TEST_CASE("layers go to the next GPU where the first is full") {
  if (!test::has_gpu()) return;
  const RandomFile file;
  const ModelSpec spec = random_spec(file);
  std::vector<int32_t> tokens(static_cast<size_t>(draw(20, 60)));
  for (int32_t& token : tokens) token = draw(0, kVocabulary - 1);
  std::vector<float> wanted;
  {
    const auto whole = load(spec, {});
    require(whole.status());
    REQUIRE(whole.value()->info().gpus.size() == 1);
    CHECK(whole.value()->info().gpus[0].layers == kLayers);
    CHECK(whole.value()->info().kv_bytes == kLayers * kLayerBytes);
    wanted = logits_of(*whole.value(), tokens);
  }
  // Of two layers and a half, and of what a step takes.
  const DeviceMemory taken = leave(kLayerBytes * 5 / 2 + (int64_t{320} << 20));
  const auto refused = load(spec, {0});
  CHECK(refused.status().code() == Code::kOutOfMemory);
  INFO(refused.status().message());
  CHECK(refused.status().message().find("2 of 4 layers fit") != std::string::npos);
  CHECK(load(spec, {0, 0}).status().code() == Code::kUsage);
  CHECK(load(spec, {0, 99}).status().code() == Code::kDevice);
  if (!check_device(1).is_ok()) {
    MESSAGE("skipped the rest: there is one GPU");
    return;
  }
  const auto split = load(spec, {0, 1});
  require(split.status());
  const std::vector<GpuShare>& shares = split.value()->info().gpus;
  REQUIRE(shares.size() == 2);
  CHECK(shares[0].gpu == 0);
  CHECK(shares[0].layers == 2);
  CHECK(shares[1].gpu == 1);
  CHECK(shares[1].layers == kLayers - 2);
  CHECK(logits_of(*split.value(), tokens) == wanted);
  // The other one has room for all.
  const auto other = load(spec, {1, 0});
  require(other.status());
  CHECK(other.value()->info().gpus.size() == 1);
}
