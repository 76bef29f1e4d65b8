// Routing on a GPU, against the CPU's.
#include <algorithm>
#include <numeric>

#include "gpu.h"
#include "kernels/cuda/routing.h"
#include "moe/router.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::OnGpu;
using test::require;

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
      for (const int width : test::some_of({64, 2048, 50}, 1)) {
        CAPTURE(of.rows);
        CAPTURE(width);
        RouterOptions options = of.options;
        // Enough logits that their length is not near zero.
        const int tokens = draw(20 / of.rows + 1, test::is_emulated() ? 60 : 300);
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
