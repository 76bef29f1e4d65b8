// What stands between products on a GPU, from embeddings to log-probabilities, against float64 on the host.
#include <algorithm>
#include <numeric>

#include "gpu.h"
#include "kernels/cuda/activations.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::OnGpu;
using test::require;

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
