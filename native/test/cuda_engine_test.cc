// A prompt in one step, by the kernels for many rows, and row by row, by the kernel for one, against the same prompt a
// few rows at a time; a model of int8 codes against its twin of bf16 weights; a model in one stage against the same
// model in several.
#include <algorithm>
#include <memory>
#include <numeric>
#include <span>
#include <tuple>

#include "engine/cuda/model_engine.h"
#include "engine/cuda/upload.h"
#include "gpu.h"
#include "kernels/cuda/product.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::require;

namespace {

constexpr int kHidden = 256;
constexpr int kHeads = 8;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 32;
constexpr int kWidth = 96;
constexpr int kExperts = 4;
constexpr int kLayers = 3;
constexpr int kVocabulary = 160;
constexpr int kBlocks = 32;

ThreadPool& pool() {
  static ThreadPool threads(4);
  return threads;
}

template <class T>
DeviceMemory on_gpu(const std::vector<T>& values) {
  Result<DeviceMemory> memory = DeviceMemory::copy_of(values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
  require(memory.status());
  return std::move(memory.value());
}

// Of experts. What is 16:32 here is not 2:4.
enum class Zeros : uint8_t { kNone, kTwoFour, kSixteenOf32 };

bool is_zero(Zeros zeros, int64_t row, int64_t col) {
  if (zeros == Zeros::kNone) return false;
  return (row + (zeros == Zeros::kTwoFour ? col + col / 4 : col / 16)) % 2 == 0;
}

std::vector<uint16_t> random_bits(int64_t rows, int64_t cols, Zeros zeros) {
  const std::vector<float> values = floats(static_cast<size_t>(rows * cols), 1 / std::sqrt(static_cast<float>(cols)));
  std::vector<uint16_t> bits;
  for (int64_t i = 0; i < rows * cols; ++i) {
    bits.push_back(is_zero(zeros, i / cols, i % cols) ? uint16_t{0} : float_to_bf16(values[static_cast<size_t>(i)]));
  }
  return bits;
}

// As many matrices with weights of their own.
Matrices bf16_matrices(int count, int64_t rows, int64_t cols, Zeros zeros) {
  std::vector<std::vector<uint16_t>> bits;
  std::vector<MatrixSource> sources;
  for (int i = 0; i < count; ++i) bits.push_back(random_bits(rows, cols, zeros));
  for (const auto& matrix : bits) sources.emplace_back(DType::kBF16, rows, cols, matrix.data());
  Result<Matrices> uploaded = upload_matrices(pool(), sources, zeros != Zeros::kNone);
  require(uploaded.status());
  return std::move(uploaded.value());
}

// The same of codes whose scales are powers of two, so that bf16 holds their weights, too: as codes, or as bf16.
Matrices grid_matrices(int count, int64_t rows, int64_t cols, Zeros zeros, bool as_codes) {
  const int64_t groups = (cols + kGroup - 1) / kGroup;
  const bool is_sparse = zeros != Zeros::kNone;
  std::vector<std::vector<uint16_t>> bits;
  std::vector<std::vector<int8_t>> codes;
  std::vector<std::vector<uint16_t>> scales;
  std::vector<MatrixSource> sources;
  std::vector<CodeMatrix> code_sources;
  for (int i = 0; i < count; ++i) {
    std::vector<float> of_group;
    for (int64_t j = 0; j < rows * groups; ++j) of_group.push_back(std::ldexp(1.0f, draw(-12, -9)));
    bits.emplace_back();
    codes.emplace_back();
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        codes.back().push_back(static_cast<int8_t>(is_zero(zeros, row, col) ? 0 : draw(-127, 127)));
        bits.back().push_back(float_to_bf16(static_cast<float>(codes.back().back()) *
                                            of_group[static_cast<size_t>(row * groups + col / kGroup)]));
      }
    }
    scales.emplace_back();
    for (const float scale : of_group) scales.back().push_back(float_to_f16(scale));
    sources.emplace_back(DType::kBF16, rows, cols, bits.back().data());
    code_sources.emplace_back(rows, cols, codes.back().data(), scales.back().data());
  }
  Result<Matrices> uploaded =
      as_codes ? upload_codes(pool(), code_sources, is_sparse) : upload_matrices(pool(), sources, is_sparse);
  require(uploaded.status());
  return std::move(uploaded.value());
}

enum class Weights : uint8_t { kBf16, kGridAsBf16, kGridAsCodes };

Matrices random_matrices(Weights weights, int count, int64_t rows, int64_t cols, Zeros zeros) {
  if (weights == Weights::kBf16) return bf16_matrices(count, rows, cols, zeros);
  return grid_matrices(count, rows, cols, zeros, weights == Weights::kGridAsCodes);
}

Model random_model(int parts, Weights weights, Zeros zeros) {
  Model model;
  model.hidden = kHidden;
  model.vocabulary = kVocabulary;
  model.norm_epsilon = 1e-6f;
  model.parts = parts;
  model.embedding.memory = on_gpu(random_bits(kVocabulary, kHidden, Zeros::kNone));
  std::vector<float> frequencies;
  for (int i = 0; i < kHeadDim / 2; ++i)
    frequencies.push_back(std::pow(1e4f, -2.0f * static_cast<float>(i) / kHeadDim));
  model.rope_half = kHeadDim / 2;
  model.inverse_frequencies = on_gpu(frequencies);
  const std::vector<float> ones(kHidden, 1.0f);
  model.final_norm = on_gpu(ones);
  model.head = random_matrices(weights, 1, kVocabulary, kHidden, Zeros::kNone);
  std::vector<int32_t> map(kExperts);
  std::iota(map.begin(), map.end(), 0);
  for (int i = 0; i < kLayers; ++i) {
    Layer& layer = model.layers.emplace_back();
    layer.attention_norm = on_gpu(ones);
    layer.feed_forward_norm = on_gpu(ones);
    layer.heads = {kHeads, kKvHeads, kHeadDim};
    layer.scale = 1 / std::sqrt(static_cast<float>(kHeadDim));
    layer.qkv = random_matrices(weights, 1, layer.qkv_width(), kHidden, Zeros::kNone);
    layer.output = random_matrices(weights, 1, kHidden, layer.query_width(), Zeros::kNone);
    const std::vector<float> empty(static_cast<size_t>(kBlocks) * kKvTokens * kKvHeads * kHeadDim, 0.0f);
    layer.keys = on_gpu(empty);
    layer.values = on_gpu(empty);
    FeedForwardPart& part = layer.feed_forward.emplace_back();
    part.is_routed = true;
    part.experts = kExperts;
    part.width = kWidth;
    part.router_rows = kExperts;
    part.routing.top_k = 2;
    part.routing.renormalise = true;
    part.router.memory = on_gpu(random_bits(kExperts, kHidden, Zeros::kNone));
    part.expert_of_row = on_gpu(map);
    part.gate_up = random_matrices(weights, kExperts, 2 * kWidth, kHidden, zeros);
    part.down = random_matrices(weights, kExperts, kHidden, kWidth, zeros);
  }
  return model;
}

// Rows first … first + count − 1 of the prompt; the logits of all of them.
std::vector<float> step(Engine& engine, const std::vector<int32_t>& prompt, const std::vector<int32_t>& blocks,
                        int first, int count) {
  StepRequest request;
  request.batch.rows = count;
  const auto used = static_cast<size_t>((first + count + kKvTokens - 1) / kKvTokens);
  request.batch.slices.push_back({0, count, first, {blocks.begin(), blocks.begin() + static_cast<ptrdiff_t>(used)}});
  request.tokens.assign(prompt.begin() + first, prompt.begin() + first + count);
  request.logits.resize(static_cast<size_t>(count));
  std::iota(request.logits.begin(), request.logits.end(), 0);
  const Result<StepResult> result = engine.step(request, nullptr);
  require(result.status());
  return result.value().logits;
}

struct Cut {
  int device;
  int layers;
};
const std::vector<Cut> kWhole = {{0, kLayers}};

// A random model in stages of so many layers. Those made from the same state of the generator are the same.
std::unique_ptr<Engine> random_engine(int parts, Weights weights = Weights::kBf16,
                                      const std::vector<Cut>& cuts = kWhole, Zeros zeros = Zeros::kTwoFour) {
  std::vector<StageModel> stages;
  const std::mt19937 state = test::generator();
  int done = 0;
  for (const Cut& cut : cuts) {
    test::generator() = state;
    REQUIRE(cudaSetDevice(cut.device) == cudaSuccess);
    Model model = random_model(parts, weights, zeros);
    model.layers.erase(model.layers.begin(), model.layers.begin() + done);
    model.layers.resize(static_cast<size_t>(cut.layers));
    done += cut.layers;
    if (&cut != &cuts.front()) model.embedding = {};
    if (&cut != &cuts.back()) model.head = {};
    stages.push_back({cut.device, std::move(model)});
  }
  Result<std::unique_ptr<Engine>> made =
      make_engine(ThreadPool::shared(0), {kVocabulary, 4096, kBlocks}, std::move(stages));
  require(made.status());
  return std::move(made.value());
}

// A second GPU, or the first again.
int other_gpu() {
  const bool has_two = check_device(1).is_ok();
  if (!has_two) MESSAGE("skipped between devices: there is one GPU");
  return has_two ? 1 : 0;
}

// All memory of the current device that is left.
std::vector<DeviceMemory> take_memory() {
  std::vector<DeviceMemory> taken;
  for (int64_t size = int64_t{1} << 38; size >= 512;) {
    Result<DeviceMemory> memory = DeviceMemory::allocate(size);
    if (memory.is_ok()) {
      taken.push_back(std::move(memory.value()));
    } else {
      size /= 2;
    }
  }
  return taken;
}

// A prompt, and the logits of its rows in steps of some counts.
struct Prompt {
  std::vector<int32_t> tokens;
  std::vector<int32_t> blocks;

  Prompt() : tokens(static_cast<size_t>(test::is_emulated() ? draw(26, 36) : draw(200, 300))), blocks(kBlocks) {
    for (int32_t& token : tokens) token = draw(0, kVocabulary - 1);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), test::generator());
  }
  int rows() const { return static_cast<int>(tokens.size()); }
  std::vector<int> steps_of(int most) const {
    std::vector<int> steps(static_cast<size_t>(rows() / most), most);
    if (rows() % most != 0) steps.push_back(rows() % most);
    return steps;
  }
  std::vector<float> logits(Engine& engine, const std::vector<int>& steps) const {
    std::vector<float> all;
    int first = 0;
    for (const int count : steps) {
      const std::vector<float> some = step(engine, tokens, blocks, first, count);
      all.insert(all.end(), some.begin(), some.end());
      first += count;
    }
    return all;
  }
};

// Whether 19 of 20 rows have the same logits: see below for the others.
bool are_close(const std::vector<float>& logits, const std::vector<float>& wanted, int parts) {
  REQUIRE(logits.size() == wanted.size());
  const auto rows = static_cast<int>(wanted.size()) / kVocabulary;
  int close = 0;
  for (int row = 0; row < rows; ++row) {
    const auto at = static_cast<ptrdiff_t>(row) * kVocabulary;
    const std::vector<double> of_row(wanted.begin() + at, wanted.begin() + at + kVocabulary);
    close += test::relative_error(logits.data() + at, of_row) < (parts == 2 ? 1e-4 : 3e-2) ? 1 : 0;
  }
  if (close < rows) MESSAGE(close << " of " << rows << " rows are close");
  return close > rows * 95 / 100;
}

// A row whose second and third expert are as good as each other may go to either, and all rows behind it read its keys.
// That hardly happens to two prompts, so `body` may fail for the first one.
template <class Body>
bool holds_for_prompt(const Body& body) {
  return body(Prompt()) || body(Prompt());
}

}  // namespace

TEST_CASE("a prompt in other steps has the logits of the same prompt in steps of four rows") {
  if (!test::has_gpu()) return;
  // What dense experts add is large enough for the rounding of bf16 activations to change which ones are chosen.
  const std::tuple<int, bool, Zeros> models[] = {{2, false, Zeros::kTwoFour},     {1, false, Zeros::kTwoFour},
                                                 {2, true, Zeros::kTwoFour},      {1, true, Zeros::kTwoFour},
                                                 {2, false, Zeros::kSixteenOf32}, {1, false, Zeros::kSixteenOf32},
                                                 {2, false, Zeros::kNone},        {2, true, Zeros::kNone}};
  for (const auto& [parts, codes, zeros] : test::some_of(models, 1)) {
    CAPTURE(parts);
    CAPTURE(codes);
    CAPTURE(static_cast<int>(zeros));
    const std::unique_ptr<Engine> engine =
        random_engine(parts, codes ? Weights::kGridAsCodes : Weights::kBf16, kWhole, zeros);
    CHECK(holds_for_prompt([&, parts = parts](const Prompt& prompt) {
      const std::vector<float> few = prompt.logits(*engine, prompt.steps_of(4));
      // The first rows in one step, the others in another: keys of a step before are read, too.
      const int first = prompt.rows() / 3;
      return are_close(prompt.logits(*engine, {first, prompt.rows() - first}), few, parts) &&
             are_close(prompt.logits(*engine, prompt.steps_of(1)), few, parts);
    }));
  }
}

TEST_CASE("a model of codes has the logits of one of the weights that they stand for") {
  if (!test::has_gpu()) return;
  const std::pair<int, Zeros> models[] = {
      {2, Zeros::kTwoFour}, {1, Zeros::kTwoFour}, {2, Zeros::kNone}, {1, Zeros::kNone}};
  for (const auto& [parts, zeros] : test::some_of(models, 1)) {
    CAPTURE(parts);
    CAPTURE(static_cast<int>(zeros));
    const std::mt19937 before = test::generator();
    const std::unique_ptr<Engine> grid = random_engine(parts, Weights::kGridAsBf16, kWhole, zeros);
    test::generator() = before;
    const std::unique_ptr<Engine> codes = random_engine(parts, Weights::kGridAsCodes, kWhole, zeros);
    CHECK(holds_for_prompt([&, parts = parts](const Prompt& prompt) {
      std::vector<int> steps(11, 1);
      steps.front() = prompt.rows() - 10;
      return are_close(prompt.logits(*codes, steps), prompt.logits(*grid, steps), parts);
    }));
  }
}

TEST_CASE("a model in several stages has the bits of the same model in one") {
  if (!test::has_gpu()) return;
  const int other = other_gpu();
  const std::vector<std::vector<Cut>> all_cuts = {{{0, 1}, {0, kLayers - 1}},
                                                  {{0, 1}, {other, 1}, {0, kLayers - 2}},
                                                  {{other, kLayers - 1}, {0, 1}},
                                                  // The embedding and the head alone.
                                                  {{0, 0}, {other, kLayers}, {0, 0}}};
  for (const int parts : test::some_of({2, 1}, 1)) {
    const Prompt prompt;
    // Many rows, then the same shapes often enough that they become graphs.
    const std::vector<int> steps = {prompt.rows() - 24, 1, 1, 1, 1, 5, 5, 5, 5};
    const std::mt19937 state = test::generator();
    const std::vector<float> wanted = prompt.logits(*random_engine(parts), steps);
    CHECK(std::all_of(wanted.begin(), wanted.end(), [](float logit) { return std::isfinite(logit); }));
    for (const std::vector<Cut>& cuts : test::some_of(all_cuts, 1)) {
      CAPTURE(parts);
      CAPTURE(cuts.size());
      test::generator() = state;
      const std::unique_ptr<Engine> engine = random_engine(parts, Weights::kBf16, cuts);
      CHECK(engine->info().gpus.size() == cuts.size());
      CHECK(prompt.logits(*engine, steps) == wanted);
    }
  }
}

TEST_CASE("a step that finds no memory fails, and the next one runs") {
  if (!test::has_gpu()) return;
  const int other = other_gpu();
  const Prompt prompt;
  const std::mt19937 state = test::generator();
  const std::unique_ptr<Engine> engine = random_engine(2, Weights::kBf16, {{0, 1}, {other, kLayers - 1}});
  const std::vector<float> before = step(*engine, prompt.tokens, prompt.blocks, 0, 3);
  {
    REQUIRE(cudaSetDevice(other) == cudaSuccess);
    const std::vector<DeviceMemory> taken = take_memory();
    StepRequest request;
    request.batch.rows = prompt.rows();
    request.batch.slices.push_back({0, prompt.rows(), 0, prompt.blocks});
    request.tokens = prompt.tokens;
    CHECK(engine->step(request, nullptr).status().code() == Code::kOutOfMemory);
  }
  CHECK(step(*engine, prompt.tokens, prompt.blocks, 0, 3) == before);
  const std::vector<float> found = step(*engine, prompt.tokens, prompt.blocks, 0, prompt.rows());
  test::generator() = state;
  CHECK(found == step(*random_engine(2), prompt.tokens, prompt.blocks, 0, prompt.rows()));
}
