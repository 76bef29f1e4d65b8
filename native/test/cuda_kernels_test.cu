// The kernels of a step on a GPU, against float64 on the host. Outputs are poisoned first.
#include <algorithm>
#include <numeric>

#include "gpu.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/routing.h"
#include "moe/router.h"
#include "packing.h"

using namespace espalier;
using namespace espalier::cuda;
using test::OnGpu;

namespace {

std::mt19937& generator() {
  static std::mt19937 random(test::fresh_seed());
  return random;
}
std::vector<float> floats(size_t count, float scale = 1) { return test::normal_floats(generator(), count, scale); }
int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator()); }

void require(const Status& status) { REQUIRE_MESSAGE(status.is_ok(), status.message()); }

double silu(double x) { return x / (1 + std::exp(-x)); }

}  // namespace

TEST_CASE("products of experts by index, of inputs in one and two parts") {
  if (!test::has_gpu()) return;
  ThreadPool pool(4);
  struct Pattern {
    cuda::TileLayout layout;
    int n;
    Format zeros;
    double density;
  };
  const Pattern patterns[] = {{cuda::TileLayout::kDense, 0, {Storage::kDense, Values::kBf16}, 1.0},
                              {cuda::TileLayout::kTwoFour, 0, {Storage::kNm, Values::kBf16, 2, 4}, 0.5},
                              {cuda::TileLayout::kBalanced, 16, {Storage::kNm, Values::kBf16, 16, 32}, 0.5},
                              {cuda::TileLayout::kBitmap, 0, {Storage::kBitmap, Values::kBf16}, 0.5}};
  constexpr int kExperts = 5;
  for (const Pattern& pattern : patterns) {
    for (const auto& [rows, cols] : {std::pair{64, 192}, {33, 1056}, {416, 64}}) {
      std::vector<std::vector<float>> matrices;
      std::vector<MatrixSource> sources;
      for (int e = 0; e < kExperts; ++e) {
        matrices.push_back(test::sparse_weights(generator(), rows, cols, pattern.zeros, pattern.density));
      }
      for (const auto& values : matrices) sources.emplace_back(DType::kF32, rows, cols, values.data());
      const Result<TiledWeights> tiled = tile_weights(pool, pattern.layout, sources, pattern.n);
      require(tiled.status());
      const OnGpu<uint8_t> tiles(
          std::vector<uint8_t>(tiled.value().tiles.data(), tiled.value().tiles.data() + tiled.value().tiles.size()));
      const OnGpu<uint32_t> starts(tiled.value().starts);
      for (const int parts : {1, 2}) {
        for (const int tokens : {1, 3, 4, 8, 9, 16, 32}) {
          if (tokens * parts > most_tokens(pattern.layout)) continue;
          CAPTURE(layout_name(pattern.layout, pattern.n));
          CAPTURE(rows);
          CAPTURE(parts);
          CAPTURE(tokens);
          constexpr int kInputs = 7;
          constexpr int kGroups = 6;
          const std::vector<float> x = floats(static_cast<size_t>(kInputs) * cols);
          const std::vector<uint16_t> bits = test::split_parts(x, kInputs, cols, parts);
          const std::vector<double> seen = test::join_parts(bits, kInputs, cols, parts);
          std::vector<int32_t> experts(kGroups);
          std::vector<int32_t> inputs(static_cast<size_t>(kGroups) * tokens);
          for (int32_t& e : experts) e = draw(-1, kExperts - 1);
          experts[2] = -1;
          experts[3] = 0;
          for (int32_t& i : inputs) i = draw(-1, kInputs - 1);
          inputs[static_cast<size_t>(3) * tokens] = 1;
          const OnGpu<uint16_t> x_gpu(bits);
          const OnGpu<int32_t> experts_gpu(experts);
          const OnGpu<int32_t> inputs_gpu(inputs);
          const OnGpu<float> y(inputs.size() * static_cast<size_t>(rows));
          Product product;
          product.weights = describe_tiles(tiled.value(), tiles.get(), starts.get());
          product.groups = kGroups;
          product.tokens = tokens;
          product.parts = parts;
          product.x = x_gpu.get();
          product.experts = experts_gpu.get();
          product.inputs = inputs_gpu.get();
          product.y = y.get();
          product.output = OutputType::kF32;
          require(launch_product(product, nullptr));
          const std::vector<float> all = y.host();
          std::vector<float> found;
          std::vector<double> wanted;
          for (size_t pair = 0; pair < inputs.size(); ++pair) {
            const int expert = experts[pair / static_cast<size_t>(tokens)];
            if (expert < 0 || inputs[pair] < 0) continue;
            for (int r = 0; r < rows; ++r) {
              double sum = 0;
              for (int k = 0; k < cols; ++k) {
                sum += static_cast<double>(matrices[static_cast<size_t>(expert)][static_cast<size_t>(r * cols + k)]) *
                       seen[static_cast<size_t>(inputs[pair] * cols + k)];
              }
              wanted.push_back(sum);
              found.push_back(all[pair * static_cast<size_t>(rows) + static_cast<size_t>(r)]);
            }
          }
          CHECK(test::relative_error(found, wanted) < 1e-5);
        }
      }
    }
  }
}

TEST_CASE("embeddings and angles") {
  if (!test::has_gpu()) return;
  for (const int width : {64, 100, 2048}) {
    constexpr int kRows = 5;
    constexpr int kHalf = 12;
    const std::vector<float> table = floats(static_cast<size_t>(10) * width);
    std::vector<int32_t> tokens(kRows);
    std::vector<int32_t> positions(kRows);
    for (int32_t& token : tokens) token = draw(0, 9);
    for (int32_t& position : positions) position = draw(0, 40000);
    const std::vector<float> frequencies = floats(kHalf, 0.5f);
    const OnGpu<float> table_gpu(table);
    const OnGpu<int32_t> tokens_gpu(tokens);
    const OnGpu<int32_t> positions_gpu(positions);
    const OnGpu<float> frequencies_gpu(frequencies);
    const OnGpu<float> hidden(static_cast<size_t>(kRows) * width);
    const OnGpu<float> cosines(kRows * kHalf);
    const OnGpu<float> sines(kRows * kHalf);
    require(embed({.rows = kRows,
                   .width = width,
                   .tokens = tokens_gpu.get(),
                   .positions = positions_gpu.get(),
                   .table = table_gpu.get(),
                   .table_is_bf16 = false,
                   .hidden = hidden.get(),
                   .inverse_frequencies = frequencies_gpu.get(),
                   .half = kHalf,
                   .scale = 1.5f,
                   .cosines = cosines.get(),
                   .sines = sines.get()},
                  nullptr));
    std::vector<float> wanted;
    std::vector<double> wanted_cosines;
    std::vector<double> wanted_sines;
    for (size_t row = 0; row < kRows; ++row) {
      wanted.insert(wanted.end(), table.begin() + tokens[row] * width, table.begin() + (tokens[row] + 1) * width);
      for (const float frequency : frequencies) {
        const float angle = static_cast<float>(positions[row]) * frequency;
        wanted_cosines.push_back(1.5 * std::cos(static_cast<double>(angle)));
        wanted_sines.push_back(1.5 * std::sin(static_cast<double>(angle)));
      }
    }
    CHECK(hidden.host() == wanted);
    CHECK(test::relative_error(cosines.host(), wanted_cosines) < 1e-6);
    CHECK(test::relative_error(sines.host(), wanted_sines) < 1e-6);
  }
}

TEST_CASE("weighted sums into the residual stream, and its norm") {
  if (!test::has_gpu()) return;
  for (const int width : {64, 100, 2048, 5120}) {
    for (const int parts : {1, 2}) {
      CAPTURE(width);
      CAPTURE(parts);
      constexpr int kRows = 3;
      constexpr int kTerms = 4;
      constexpr int kSlots = 20;
      const auto size = static_cast<size_t>(width);
      const std::vector<float> hidden = floats(kRows * size);
      const std::vector<float> source = floats(kSlots * size);
      const std::vector<float> bias = floats(size);
      const std::vector<float> weight = floats(size);
      const std::vector<float> gates = floats(kRows * kTerms);
      std::vector<int32_t> slots(kRows * kTerms);
      for (int32_t& slot : slots) slot = draw(-1, kSlots - 1);
      const OnGpu<float> hidden_gpu(hidden);
      const OnGpu<float> source_gpu(source);
      const OnGpu<float> bias_gpu(bias);
      const OnGpu<float> weight_gpu(weight);
      const OnGpu<float> gates_gpu(gates);
      const OnGpu<int32_t> slots_gpu(slots);
      const int stride = part_stride(width);
      const OnGpu<uint16_t> out(static_cast<size_t>(kRows * parts * stride));
      const OnGpu<float> out_floats(kRows * size);
      require(add_and_norm({.rows = kRows,
                            .width = width,
                            .hidden = hidden_gpu.get(),
                            .source = source_gpu.get(),
                            .bias = bias_gpu.get(),
                            .slots = slots_gpu.get(),
                            .gates = gates_gpu.get(),
                            .terms = kTerms,
                            .weight = weight_gpu.get(),
                            .epsilon = 1e-5f,
                            .out = {out.get(), parts, stride},
                            .out_floats = out_floats.get()},
                           nullptr));
      std::vector<double> sums;
      std::vector<double> norms;
      for (size_t row = 0; row < kRows; ++row) {
        double squares = 0;
        for (size_t i = 0; i < size; ++i) {
          double sum = static_cast<double>(hidden[row * size + i]) + static_cast<double>(bias[i]);
          for (size_t j = row * kTerms; j < (row + 1) * kTerms; ++j) {
            if (slots[j] < 0) continue;
            sum +=
                static_cast<double>(gates[j]) * static_cast<double>(source[static_cast<size_t>(slots[j]) * size + i]);
          }
          sums.push_back(sum);
          squares += sum * sum;
        }
        const double scale = 1 / std::sqrt(squares / width + 1e-5);
        for (size_t i = 0; i < size; ++i)
          norms.push_back(sums[row * size + i] * scale * static_cast<double>(weight[i]));
      }
      CHECK(test::relative_error(hidden_gpu.host(), sums) < 1e-6);
      CHECK(test::relative_error(out_floats.host(), norms) < 1e-6);
      CHECK(test::relative_error(test::join_parts(out.host(), kRows, width, parts), norms) < test::parts_error(parts));

      // Rows that are picked, and nothing added.
      const std::vector<int32_t> pick = {2, 0, 2};
      const OnGpu<int32_t> pick_gpu(pick);
      require(add_and_norm({.rows = kRows,
                            .width = width,
                            .hidden = hidden_gpu.get(),
                            .pick = pick_gpu.get(),
                            .weight = weight_gpu.get(),
                            .epsilon = 1e-5f,
                            .out = {out.get(), parts, stride}},
                           nullptr));
      std::vector<double> picked;
      for (const int32_t row : pick) {
        picked.insert(picked.end(), norms.begin() + row * width, norms.begin() + (row + 1) * width);
      }
      CHECK(test::relative_error(test::join_parts(out.host(), kRows, width, parts), picked) < test::parts_error(parts));
    }
  }
}

TEST_CASE("gated products of rows in several groups") {
  if (!test::has_gpu()) return;
  ThreadPool pool(4);
  for (const auto& [width, cols, rows] : {std::tuple{32, 64, 1}, {96, 192, 50}, {768, 2048, 3}, {352, 160, 33}}) {
    for (const int parts : {1, 2}) {
      CAPTURE(width);
      CAPTURE(parts);
      const auto elements = static_cast<size_t>(width) * static_cast<size_t>(cols);
      const std::vector<float> gate =
          test::sparse_weights(generator(), width, cols, {Storage::kDense, Values::kBf16}, 1);
      const std::vector<float> up = test::sparse_weights(generator(), width, cols, {Storage::kDense, Values::kBf16}, 1);
      std::vector<float> both(2 * elements);
      for (int r = 0; r < width; ++r) {
        const int to = r / 8 * 16 + r % 8;
        std::copy_n(gate.begin() + r * cols, cols, both.begin() + to * cols);
        std::copy_n(up.begin() + r * cols, cols, both.begin() + (to + 8) * cols);
      }
      const MatrixSource source(DType::kF32, 2 * width, cols, both.data());
      const Result<TiledWeights> tiled = tile_weights(pool, cuda::TileLayout::kDense, {&source, 1});
      require(tiled.status());
      const OnGpu<uint8_t> tiles(
          std::vector<uint8_t>(tiled.value().tiles.data(), tiled.value().tiles.data() + tiled.value().tiles.size()));
      Product product;
      product.weights = describe_tiles(tiled.value(), tiles.get(), nullptr);
      product.tokens = std::min(rows, 16);
      product.groups = (rows + product.tokens - 1) / product.tokens;
      product.parts = parts;
      const int padded = product.groups * product.tokens;
      const std::vector<float> x = floats(static_cast<size_t>(padded) * cols, 1 / std::sqrt(static_cast<float>(cols)));
      const std::vector<uint16_t> bits = test::split_parts(x, padded, cols, parts);
      const std::vector<double> seen = test::join_parts(bits, padded, cols, parts);
      const OnGpu<uint16_t> x_gpu(bits);
      const OnGpu<uint16_t> y(static_cast<size_t>(padded * parts * width));
      product.x = x_gpu.get();
      product.y = y.get();
      product.output = OutputType::kGated;
      require(launch_product(product, nullptr));
      std::vector<double> wanted;
      for (int row = 0; row < rows; ++row) {
        for (int r = 0; r < width; ++r) {
          double g = 0;
          double u = 0;
          for (int k = 0; k < cols; ++k) {
            const double value = seen[static_cast<size_t>(row * cols + k)];
            g += static_cast<double>(gate[static_cast<size_t>(r * cols + k)]) * value;
            u += static_cast<double>(up[static_cast<size_t>(r * cols + k)]) * value;
          }
          wanted.push_back(silu(g) * u);
        }
      }
      CHECK(test::relative_error(test::join_parts(y.host(), rows, width, parts), wanted) < test::parts_error(parts));
    }
  }
}

TEST_CASE("log-probabilities") {
  if (!test::has_gpu()) return;
  for (const int width : {128, 4096, 151936}) {
    constexpr int kRows = 3;
    const std::vector<float> logits = floats(static_cast<size_t>(kRows) * width, 5);
    const std::vector<int32_t> targets = {0, width - 1, draw(0, width - 1)};
    const OnGpu<float> logits_gpu(logits);
    const OnGpu<int32_t> targets_gpu(targets);
    const OnGpu<double> scores(kRows);
    require(score({.rows = kRows,
                   .width = width,
                   .logits = logits_gpu.get(),
                   .targets = targets_gpu.get(),
                   .scores = scores.get()},
                  nullptr));
    std::vector<double> wanted;
    for (int row = 0; row < kRows; ++row) {
      double sum = 0;
      for (int i = 0; i < width; ++i)
        sum += std::exp(static_cast<double>(logits[static_cast<size_t>(row * width + i)]));
      wanted.push_back(
          static_cast<double>(logits[static_cast<size_t>(row * width + targets[static_cast<size_t>(row)])]) -
          std::log(sum));
    }
    CHECK(test::relative_error(scores.host(), wanted) < 1e-6);
  }
}

TEST_CASE("the largest logit, of equal ones the first") {
  if (!test::has_gpu()) return;
  for (const int width : {1, 31, 128, 4096, 151936}) {
    constexpr int kRows = 4;
    std::vector<float> logits = floats(static_cast<size_t>(kRows) * width);
    // Equal ones in the second row, nothing but −∞ in the last.
    for (int i = 0; i < 3; ++i) logits[static_cast<size_t>(width + draw(0, width - 1))] = 100;
    std::fill(logits.end() - width, logits.end(), -INFINITY);
    const OnGpu<float> logits_gpu(logits);
    const OnGpu<int32_t> places(kRows);
    require(find_largest({.rows = kRows, .width = width, .logits = logits_gpu.get(), .places = places.get()}, nullptr));
    const std::vector<int32_t> found = places.host();
    for (int row = 0; row < kRows - 1; ++row) {
      const auto first = logits.begin() + row * width;
      CHECK(found[static_cast<size_t>(row)] == std::max_element(first, first + width) - first);
    }
    CHECK(found[kRows - 1] >= 0);
    CHECK(found[kRows - 1] < width);
  }
}

namespace {

struct AttentionCase {
  int heads;
  int kv_heads;
  int head_dim;
  int window;
  bool bf16;
  bool whole_norm;
};

// Heads of one row as float64: bias, norm, clamp, rotation.
std::vector<double> prepared(const std::vector<float>& source, size_t first, int heads, const AttentionCase& of,
                             const std::vector<float>& bias, size_t bias_first, const std::vector<float>& norm,
                             bool is_whole, float clip, const float* cosines, const float* sines) {
  const auto dim = static_cast<size_t>(of.head_dim);
  const size_t width = static_cast<size_t>(heads) * dim;
  std::vector<double> out(width);
  for (size_t i = 0; i < width; ++i) {
    out[i] = static_cast<double>(source[first + i]) + static_cast<double>(bias[bias_first + i]);
  }
  const size_t part = is_whole ? width : dim;
  for (size_t begin = 0; begin < width && !norm.empty(); begin += part) {
    double squares = 0;
    for (size_t i = begin; i < begin + part; ++i) squares += out[i] * out[i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(part) + 1e-6);
    for (size_t i = begin; i < begin + part; ++i) out[i] *= scale * static_cast<double>(norm[i - begin]);
  }
  for (double& value : out) value = std::clamp(value, -static_cast<double>(clip), static_cast<double>(clip));
  if (cosines == nullptr) return out;
  std::vector<double> rotated(width);
  const size_t half = dim / 2;
  for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
    for (size_t i = 0; i < half; ++i) {
      const double a = out[h * dim + i];
      const double b = out[h * dim + half + i];
      rotated[h * dim + i] = a * static_cast<double>(cosines[i]) - b * static_cast<double>(sines[i]);
      rotated[h * dim + half + i] = b * static_cast<double>(cosines[i]) + a * static_cast<double>(sines[i]);
    }
  }
  return rotated;
}

}  // namespace

TEST_CASE("heads into a paged cache, and attention over it") {
  if (!test::has_gpu()) return;
  const AttentionCase cases[] = {{4, 2, 32, 0, false, false},    {4, 4, 16, 8, false, true},
                                 {6, 2, 24, 0, false, false},    {8, 1, 128, 0, true, false},
                                 {32, 2, 64, 200, false, false}, {2, 1, 256, 0, false, true},
                                 {16, 4, 128, 0, false, false}};
  for (const AttentionCase& of : cases) {
    CAPTURE(of.heads);
    CAPTURE(of.kv_heads);
    CAPTURE(of.head_dim);
    CAPTURE(of.window);
    // Two sequences of different lengths, whose blocks are scattered.
    const std::vector<int> lengths = {draw(129, 400), draw(1, 60)};
    const int rows = lengths[0] + lengths[1];
    const auto dim = static_cast<size_t>(of.head_dim);
    const size_t width = static_cast<size_t>(of.heads + 2 * of.kv_heads) * dim;
    const size_t q_width = static_cast<size_t>(of.heads) * dim;
    const size_t kv_width = static_cast<size_t>(of.kv_heads) * dim;
    const size_t half = dim / 2;
    const std::vector<float> source = floats(static_cast<size_t>(rows) * width, 2);
    const std::vector<float> bias = floats(width, 0.5f);
    const std::vector<float> q_norm = floats(of.whole_norm ? q_width : dim);
    const std::vector<float> k_norm = floats(of.whole_norm ? kv_width : dim);
    const std::vector<float> cosines = floats(static_cast<size_t>(rows) * half);
    const std::vector<float> sines = floats(static_cast<size_t>(rows) * half);
    constexpr float kClip = 2.5f;
    const float scale = 1.0f / std::sqrt(static_cast<float>(of.head_dim));

    std::vector<int32_t> positions;
    std::vector<int32_t> tables;
    std::vector<int32_t> blocks(static_cast<size_t>(lengths[0] / kKvTokens + lengths[1] / kKvTokens + 2));
    std::iota(blocks.begin(), blocks.end(), 3);
    std::shuffle(blocks.begin(), blocks.end(), generator());
    for (int s = 0; s < 2; ++s) {
      for (int p = 0; p < lengths[static_cast<size_t>(s)]; ++p) {
        positions.push_back(p);
        tables.push_back(s == 0 ? 0 : lengths[0] / kKvTokens + 1);
      }
    }
    const OnGpu<int32_t> positions_gpu(positions);
    const OnGpu<int32_t> tables_gpu(tables);
    const OnGpu<int32_t> blocks_gpu(blocks);
    const OnGpu<float> source_gpu(source);
    const OnGpu<float> bias_gpu(bias);
    const OnGpu<float> q_norm_gpu(q_norm);
    const OnGpu<float> k_norm_gpu(k_norm);
    const OnGpu<float> cosines_gpu(cosines);
    const OnGpu<float> sines_gpu(sines);
    const OnGpu<float> queries(static_cast<size_t>(rows) * q_width);
    const size_t cache_size = (blocks.size() + 3) * kKvTokens * kv_width;
    const OnGpu<float> keys(cache_size);
    const OnGpu<float> values(cache_size);
    const KvCache cache{keys.get(), values.get(), of.bf16};
    const HeadShape shape{of.heads, of.kv_heads, of.head_dim};
    const RowPlaces places{rows, positions_gpu.get(), tables_gpu.get(), blocks_gpu.get()};
    require(prepare_heads({.places = places,
                           .shape = shape,
                           .source = source_gpu.get(),
                           .bias = bias_gpu.get(),
                           .q_norm = q_norm_gpu.get(),
                           .k_norm = k_norm_gpu.get(),
                           .q_norm_whole = of.whole_norm,
                           .k_norm_whole = of.whole_norm,
                           .epsilon = 1e-6f,
                           .clip = kClip,
                           .cosines = cosines_gpu.get(),
                           .sines = sines_gpu.get(),
                           .queries = queries.get(),
                           .cache = cache},
                          nullptr));

    std::vector<std::vector<double>> q;
    std::vector<std::vector<double>> k;
    std::vector<std::vector<double>> v;
    std::vector<double> wanted_queries;
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      const float* cosine = cosines.data() + row * half;
      const float* sine = sines.data() + row * half;
      const size_t first = row * width;
      q.push_back(prepared(source, first, of.heads, of, bias, 0, q_norm, of.whole_norm, kClip, cosine, sine));
      k.push_back(prepared(source, first + q_width, of.kv_heads, of, bias, q_width, k_norm, of.whole_norm, kClip,
                           cosine, sine));
      v.push_back(prepared(source, first + q_width + kv_width, of.kv_heads, of, bias, q_width + kv_width, {}, false,
                           kClip, nullptr, nullptr));
      wanted_queries.insert(wanted_queries.end(), q.back().begin(), q.back().end());
    }
    CHECK(test::relative_error(queries.host(), wanted_queries) < 1e-6);

    std::vector<double> wanted;
    for (int row = 0; row < rows; ++row) {
      const int start = row < lengths[0] ? 0 : lengths[0];
      const int first = of.window > 0 ? std::max(start, row - of.window + 1) : start;
      for (int h = 0; h < of.heads; ++h) {
        const size_t kv = static_cast<size_t>(h / (of.heads / of.kv_heads)) * dim;
        std::vector<double> weights;
        double total = 0;
        for (int key = first; key <= row; ++key) {
          double dot = 0;
          for (size_t d = 0; d < dim; ++d) {
            dot += q[static_cast<size_t>(row)][static_cast<size_t>(h) * dim + d] * k[static_cast<size_t>(key)][kv + d];
          }
          weights.push_back(std::exp(dot * static_cast<double>(scale)));
          total += weights.back();
        }
        for (size_t d = 0; d < dim; ++d) {
          double sum = 0;
          for (int key = first; key <= row; ++key) {
            sum += weights[static_cast<size_t>(key - first)] * v[static_cast<size_t>(key)][kv + d];
          }
          wanted.push_back(sum / total);
        }
      }
    }
    const int stride = part_stride(static_cast<int64_t>(q_width));
    const int chunks = (lengths[0] + kAttendChunk - 1) / kAttendChunk;
    const OnGpu<float> partials(static_cast<size_t>(attend_partial_floats(shape, rows, chunks + 1)));
    for (const auto& [splits, of_each] : {std::pair{1, 1}, {chunks, 1}, {chunks + 1, 1}, {chunks / 2 + 1, 2}}) {
      CAPTURE(splits);
      CAPTURE(of_each);
      const OnGpu<uint16_t> out(static_cast<size_t>(rows) * 2 * static_cast<size_t>(stride));
      require(attend({.places = places,
                      .shape = shape,
                      .scale = scale,
                      .window = of.window,
                      .cache = cache,
                      .queries = queries.get(),
                      .out = {out.get(), 2, stride},
                      .splits = splits,
                      .split_chunks = of_each,
                      .partials = partials.get()},
                     nullptr));
      const std::vector<double> found = test::join_parts(out.host(), rows, static_cast<int64_t>(q_width), 2);
      CHECK(test::relative_error(found, wanted) < (of.bf16 ? 2e-2 : 1e-5));
    }
  }
}

namespace {

struct RouterCase {
  int rows;
  RouterOptions options;
};

}  // namespace

TEST_CASE("routing chooses as the CPU's does, and groups hold every pair once") {
  if (!test::has_gpu()) return;
  const auto softmax = [](int top_k, bool renormalise) {
    RouterOptions options;
    options.top_k = top_k;
    options.renormalise = renormalise;
    return options;
  };
  RouterOptions gate = softmax(1, false);
  gate.scoring = Scoring::kSigmoid;
  RouterOptions groups = softmax(6, true);
  groups.scoring = Scoring::kSigmoid;
  groups.n_group = 8;
  groups.topk_group = 3;
  groups.routed_scaling_factor = 2.5f;
  RouterOptions skipping = softmax(4, true);
  skipping.skip_below = {0.9f, 0.7f, 0.5f};
  const RouterCase cases[] = {{8, softmax(2, true)}, {128, softmax(8, true)}, {6, softmax(3, false)},
                              {64, groups},          {60, skipping},          {1, gate}};
  for (const RouterCase& of : cases) {
    for (const bool with_bias : {false, true}) {
      for (const int width : {64, 2048, 50}) {
        CAPTURE(of.rows);
        CAPTURE(width);
        RouterOptions options = of.options;
        const int tokens = draw(1, 300);
        const int k = options.top_k;
        const std::vector<float> x = floats(static_cast<size_t>(tokens) * width);
        const std::vector<float> weights = floats(static_cast<size_t>(of.rows) * width, 1.0f / std::sqrt(width));
        if (with_bias) options.correction_bias = floats(static_cast<size_t>(of.rows), 0.1f);
        std::vector<int32_t> expert_of_row(static_cast<size_t>(of.rows));
        const int experts = std::max(1, of.rows - 2);
        for (int32_t& e : expert_of_row) e = draw(0, experts - 1);
        const OnGpu<float> x_gpu(x);
        const OnGpu<float> weights_gpu(weights);
        const OnGpu<float> bias_gpu(options.correction_bias);
        const OnGpu<float> skip_gpu(options.skip_below);
        const OnGpu<int32_t> map_gpu(expert_of_row);
        const size_t pairs = static_cast<size_t>(tokens) * static_cast<size_t>(k);
        const OnGpu<float> logits(static_cast<size_t>(tokens) * of.rows);
        const OnGpu<int32_t> chosen(pairs);
        const OnGpu<float> gates(pairs);
        const OnGpu<int32_t> own_slots(pairs);
        const OnGpu<int32_t> unfinished(std::vector<int32_t>(static_cast<size_t>(tokens), 0));
        require(route({.tokens = tokens,
                       .rows = of.rows,
                       .width = width,
                       .top_k = k,
                       .renormalise = options.renormalise,
                       .sigmoid = options.scoring == Scoring::kSigmoid,
                       .groups = options.n_group,
                       .top_groups = options.topk_group,
                       .scaling = options.routed_scaling_factor,
                       .x = x_gpu.get(),
                       .weights = weights_gpu.get(),
                       .weights_are_bf16 = false,
                       .bias = with_bias ? bias_gpu.get() : nullptr,
                       .skip_below = options.skip_below.empty() ? nullptr : skip_gpu.get(),
                       .expert_of_row = map_gpu.get(),
                       .logits = logits.get(),
                       .unfinished = unfinished.get(),
                       .experts = chosen.get(),
                       .gates = gates.get(),
                       .slots = own_slots.get()},
                      nullptr));
        std::vector<float> found_logits = logits.host();
        std::vector<double> wanted_logits;
        for (int t = 0; t < tokens; ++t) {
          for (int r = 0; r < of.rows; ++r) {
            double sum = 0;
            for (int i = 0; i < width; ++i) {
              sum += static_cast<double>(x[static_cast<size_t>(t * width + i)]) *
                     static_cast<double>(weights[static_cast<size_t>(r * width + i)]);
            }
            wanted_logits.push_back(sum);
          }
        }
        CHECK(test::relative_error(found_logits, wanted_logits) < 1e-6);
        // The CPU's choice from the same logits.
        std::vector<int32_t> wanted(pairs);
        std::vector<float> wanted_gates(pairs);
        route(cpu_kernels(), options, found_logits.data(), tokens, of.rows, wanted.data(), wanted_gates.data());
        for (int32_t& row : wanted) row = row < 0 ? -1 : expert_of_row[static_cast<size_t>(row)];
        const std::vector<int32_t> found = chosen.host();
        CHECK(found == wanted);
        CHECK(test::relative_error(gates.host(), {wanted_gates.begin(), wanted_gates.end()}) < 1e-5);
        CHECK(unfinished.host() == std::vector<int32_t>(static_cast<size_t>(tokens), 0));
        const std::vector<int32_t> own = own_slots.host();
        for (size_t i = 0; i < pairs; ++i) CHECK(own[i] == (found[i] < 0 ? -1 : static_cast<int32_t>(i)));

        const int group_tokens = draw(1, 16);
        const int count = most_groups(tokens, k, experts, group_tokens);
        const OnGpu<int32_t> group_experts(static_cast<size_t>(count));
        const OnGpu<int32_t> inputs(static_cast<size_t>(count) * group_tokens);
        const OnGpu<int32_t> slots(pairs);
        require(group_rows({.tokens = tokens,
                            .top_k = k,
                            .experts_count = experts,
                            .group_tokens = group_tokens,
                            .groups = count,
                            .experts = chosen.get(),
                            .group_experts = group_experts.get(),
                            .inputs = inputs.get(),
                            .slots = slots.get()},
                           nullptr));
        const std::vector<int32_t> of_groups = group_experts.host();
        const std::vector<int32_t> tokens_of = inputs.host();
        const std::vector<int32_t> found_slots = slots.host();
        std::vector<bool> used(tokens_of.size());
        bool right = true;
        for (size_t i = 0; i < pairs; ++i) {
          const int32_t slot = found_slots[i];
          if (found[i] < 0) {
            right = right && slot == -1;
            continue;
          }
          right = right && slot >= 0 && slot < static_cast<int32_t>(used.size()) && !used[static_cast<size_t>(slot)];
          if (!right) break;
          used[static_cast<size_t>(slot)] = true;
          right = right && tokens_of[static_cast<size_t>(slot)] == static_cast<int32_t>(i) / k &&
                  of_groups[static_cast<size_t>(slot / group_tokens)] == found[i];
        }
        for (size_t i = 0; i < used.size(); ++i) right = right && (used[i] || tokens_of[i] == -1);
        CHECK(right);
      }
    }
  }
}
