// The experts of one layer, behind the router: their gate and up products with SwiGLU, their down products, and the sum
// of a token's experts by its gates into float32 hidden states, all by the launches that the engine makes. First small
// layers are checked against float64, then those of two models are timed: replayed CUDA graphs of 16 layers that go
// through different experts, medians. transformers_moe_layer.py compares them with torch._grouped_mm.
//
//   bench/cuda/build.sh moe_layer && ./moe_layer [seed]
//
// Writes moe_routes.bin, the chosen experts, int32 [runs][tokens][top_k] for each model and each number of tokens.
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "engine/cuda/group_size.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/routing.h"
#include "products.cuh"

using namespace espalier;
using namespace espalier::cuda;
using namespace bench;

namespace {

struct Model {
  const char* name;
  int experts;
  int hidden;
  int width;
  int top_k;
  int distinct;  // experts whose weights differ, to spare the host
};
const Model kModels[] = {{"Mixtral-8x7B", 8, 4096, 14336, 2, 1}, {"Qwen3-30B-A3B", 128, 2048, 768, 8, 8}};
const Model kSmall = {"small", 6, 256, 192, 2, 6};
constexpr int kTokens[] = {1, 4, 16, 64};
constexpr int kRuns = 16;

// The experts that each token of each run goes to.
std::vector<int32_t> choose_experts(const Model& model, int tokens) {
  std::mt19937 random(++g_seed);
  std::vector<int32_t> order(static_cast<size_t>(model.experts));
  std::iota(order.begin(), order.end(), 0);
  std::vector<int32_t> chosen;
  for (int token = 0; token < kRuns * tokens; ++token) {
    std::shuffle(order.begin(), order.end(), random);
    chosen.insert(chosen.end(), order.begin(), order.begin() + model.top_k);
  }
  return chosen;
}

// The weights of a layer's experts, bf16 bits row after row and packed.
struct Experts {
  std::vector<uint16_t> gate_up_bits;
  std::vector<uint16_t> down_bits;
  Weights gate_up;
  Weights down;

  Experts(const Model& model, const Pattern& pattern)
      : gate_up_bits(random_weights(pattern, int64_t{2} * model.distinct * model.width, model.hidden)),
        down_bits(random_weights(pattern, int64_t{1} * model.distinct * model.hidden, model.width)),
        gate_up(
            pack(pattern, gate_up_bits, 2 * model.width, model.hidden, model.distinct, model.experts / model.distinct)),
        down(pack(pattern, down_bits, model.hidden, model.width, model.distinct, model.experts / model.distinct)) {}
};

class Layer {
 public:
  // `parts`: of activations, see product.h.
  Layer(const Model& model, const Experts& experts, int tokens, int parts, const std::vector<int32_t>& chosen)
      : model_(model), experts_(experts), tokens_(tokens), parts_(parts), chosen_(chosen) {
    if (tokens == 1) {
      groups_ = model.top_k;
    } else {
      const double average = static_cast<double>(tokens) * model.top_k / model.experts;
      const GroupPlan plan = plan_groups(experts.gate_up.device.layout, average, tokens, parts, true);
      group_tokens_ = plan.tokens;
      wide_ = plan.wide;
      groups_ = most_groups(tokens, model.top_k, model.experts, group_tokens_);
    }
    const auto places = static_cast<size_t>(groups_) * static_cast<size_t>(group_tokens_);
    const auto pairs = static_cast<size_t>(tokens) * static_cast<size_t>(model.top_k);
    x_bits_ = random_bits(static_cast<size_t>(tokens) * static_cast<size_t>(parts) * static_cast<size_t>(model.hidden));
    x_ = DeviceArray<uint16_t>(x_bits_);
    gathered_ = DeviceArray<uint16_t>(places * static_cast<size_t>(parts) * static_cast<size_t>(model.hidden));
    activations_ = DeviceArray<uint16_t>(places * static_cast<size_t>(parts) * static_cast<size_t>(model.width));
    down_ = DeviceArray<float>(places * static_cast<size_t>(model.hidden));
    group_experts_ = DeviceArray<int32_t>(static_cast<size_t>(groups_));
    inputs_ = DeviceArray<int32_t>(std::vector<int32_t>(places, 0));
    std::vector<int32_t> slots(pairs);
    std::iota(slots.begin(), slots.end(), 0);
    slots_ = DeviceArray<int32_t>(slots);
    gates_host_ = std::vector<float>(pairs);
    for (size_t i = 0; i < pairs; ++i) gates_host_[i] = 1.0f / static_cast<float>(1 + i % 5);
    gates_ = DeviceArray<float>(gates_host_);
    hidden_ = DeviceArray<float>(std::vector<float>(static_cast<size_t>(tokens) * model.hidden, 0.0f));
    norm_ = DeviceArray<float>(std::vector<float>(static_cast<size_t>(model.hidden), 1.0f));
    normed_ = DeviceArray<uint16_t>(x_bits_.size());
  }

  void launch(int run, cudaStream_t stream) const {
    const int32_t* experts = chosen_.data() + static_cast<size_t>(run) * static_cast<size_t>(tokens_ * model_.top_k);
    const bool direct = tokens_ == 1;
    if (!direct) {
      MUST(group_rows({.tokens = tokens_,
                       .top_k = model_.top_k,
                       .experts_count = model_.experts,
                       .group_tokens = group_tokens_,
                       .groups = groups_,
                       .experts = experts,
                       .group_experts = group_experts_.data(),
                       .inputs = inputs_.data(),
                       .slots = slots_.data()},
                      stream));
    }
    Product product{.weights = experts_.gate_up.device,
                    .groups = groups_,
                    .tokens = group_tokens_,
                    .x = x_.data(),
                    .experts = direct ? experts : group_experts_.data(),
                    .inputs = inputs_.data(),
                    .parts = parts_,
                    .y = activations_.data(),
                    .output = OutputType::kGated};
    if (wide_) {
      MUST(gather_rows({.slots = groups_ * group_tokens_,
                        .inputs = inputs_.data(),
                        .from = {x_.data(), parts_, model_.hidden},
                        .to = {gathered_.data(), parts_, model_.hidden}},
                       stream));
      product.x = gathered_.data();
      product.inputs = nullptr;
      product.experts_settled = true;
    }
    MUST(wide_ ? launch_wide_product(product, stream) : launch_product(product, stream));
    product.weights = experts_.down.device;
    product.x = activations_.data();
    product.inputs = nullptr;
    product.experts_settled = true;
    product.y = down_.data();
    product.output = OutputType::kF32;
    MUST(wide_ ? launch_wide_product(product, stream) : launch_product(product, stream));
    MUST(add_and_norm({.rows = tokens_,
                       .width = model_.hidden,
                       .hidden = hidden_.data(),
                       .source = down_.data(),
                       .slots = slots_.data(),
                       .gates = gates_.data(),
                       .terms = model_.top_k,
                       .weight = norm_.data(),
                       .epsilon = 1e-6f,
                       .out = {normed_.data(), parts_, model_.hidden}},
                      stream));
  }

  // ‖found − wanted‖ / ‖wanted‖ of the hidden states after run 0.
  double error(const std::vector<int32_t>& chosen) const {
    MUST(cudaDeviceSynchronize());
    const std::vector<float> found = hidden_.host();
    double difference = 0;
    double norm = 0;
    for (int token = 0; token < tokens_; ++token) {
      std::vector<double> sums(static_cast<size_t>(model_.hidden));
      for (int j = 0; j < model_.top_k; ++j) {
        const auto pair = static_cast<size_t>(token * model_.top_k + j);
        add_expert(token, chosen[pair], static_cast<double>(gates_host_[pair]), sums);
      }
      for (size_t i = 0; i < sums.size(); ++i) {
        const double off = static_cast<double>(found[static_cast<size_t>(token) * sums.size() + i]) - sums[i];
        difference += off * off;
        norm += sums[i] * sums[i];
      }
    }
    return std::sqrt(difference / norm);
  }

 private:
  static double dot(const uint16_t* weights, const std::vector<double>& x) {
    double sum = 0;
    for (size_t k = 0; k < x.size(); ++k) sum += static_cast<double>(bf16_to_float(weights[k])) * x[k];
    return sum;
  }
  void add_expert(int token, int expert, double gate, std::vector<double>& sums) const {
    const auto hidden = static_cast<size_t>(model_.hidden);
    const auto width = static_cast<size_t>(model_.width);
    std::vector<double> x(hidden);
    for (int part = 0; part < parts_; ++part) {
      const uint16_t* row = x_bits_.data() + (static_cast<size_t>(token) * parts_ + part) * hidden;
      for (size_t k = 0; k < hidden; ++k) x[k] += static_cast<double>(bf16_to_float(row[k]));
    }
    const auto of = static_cast<size_t>(expert % model_.distinct);
    const uint16_t* gate_up = experts_.gate_up_bits.data() + of * 2 * width * hidden;
    const uint16_t* down = experts_.down_bits.data() + of * hidden * width;
    std::vector<double> activations(width);
    for (size_t r = 0; r < width; ++r) {
      const uint16_t* row = gate_up + (r / 8 * 16 + r % 8) * hidden;
      const double of_gate = dot(row, x);
      activations[r] = of_gate / (1 + std::exp(-of_gate)) * dot(row + 8 * hidden, x);
    }
    for (size_t r = 0; r < hidden; ++r) sums[r] += gate * dot(down + r * width, activations);
  }

  const Model& model_;
  const Experts& experts_;
  const int tokens_;
  const int parts_;
  bool wide_ = false;
  int group_tokens_ = 1;
  int groups_ = 1;
  DeviceArray<int32_t> chosen_;
  std::vector<uint16_t> x_bits_;
  std::vector<float> gates_host_;
  DeviceArray<uint16_t> x_, gathered_, activations_, normed_;
  DeviceArray<float> down_, gates_, hidden_, norm_;
  DeviceArray<int32_t> group_experts_, inputs_, slots_;
};

const Pattern kPatterns[] = {kTwoFour, kBalanced, kBitmap50};

bool check() {
  bool good = true;
  for (const Pattern& pattern : kPatterns) {
    const Experts experts(kSmall, pattern);
    double worst[2] = {};
    for (const int tokens : kTokens) {
      const std::vector<int32_t> chosen = choose_experts(kSmall, tokens);
      for (const int parts : {1, 2}) {
        const Layer layer(kSmall, experts, tokens, parts, chosen);
        layer.launch(0, nullptr);
        const double error = layer.error(chosen);
        worst[parts - 1] = std::max(worst[parts - 1], error);
        good = good && error < (parts == 1 ? 4e-3 : 2e-5);
      }
    }
    std::printf("checked: %s, relative error to float64 %.1e (bf16 activations) and %.1e (two parts)\n",
                pattern.name.c_str(), worst[0], worst[1]);
  }
  if (!good) std::printf("WRONG\n");
  return good;
}

void time_all() {
  std::FILE* routes = std::fopen("moe_routes.bin", "wb");
  if (routes == nullptr) std::exit(1);
  for (const Model& model : kModels) {
    std::vector<std::vector<int32_t>> chosen;
    for (const int tokens : kTokens) {
      chosen.push_back(choose_experts(model, tokens));
      std::fwrite(chosen.back().data(), 4, chosen.back().size(), routes);
    }
    for (const Pattern& pattern : kPatterns) {
      const Experts experts(model, pattern);
      for (size_t i = 0; i < std::size(kTokens); ++i) {
        for (const int parts : {1, 2}) {
          const Layer layer(model, experts, kTokens[i], parts, chosen[i]);
          std::vector<Contender> contenders = {
              {"ours", [&](int run, cudaStream_t stream) { layer.launch(run, stream); }}};
          measure(contenders, kRuns, 9);
          std::printf("%s; %d; %s%s; %.1f\n", model.name, kTokens[i], pattern.name.c_str(),
                      parts == 2 ? ", float32 activations" : "", contenders[0].micros);
          std::fflush(stdout);
        }
      }
    }
  }
  std::fclose(routes);
}

}  // namespace

int main(int argc, char** argv) {
  g_seed = argc > 1 ? static_cast<unsigned>(std::strtoul(argv[1], nullptr, 10)) : std::random_device{}() % 1000000;
  cudaDeviceProp properties;
  MUST(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, seed %u\n", properties.name, g_seed);
  if (!check()) return 1;
  time_all();
  return 0;
}
