#include "prune/recover.h"

#include <filesystem>
#include <numeric>

#include "prune/gradual_mask.h"
#include "test_main.h"

namespace espalier {
namespace {

using test::normal_floats;

// A few experts, tokens that go to two of them each, and files as recovery reads them.
struct Layer {
  int64_t hidden, width, tokens;
  std::vector<ExpertFloats> dense, pruned;
  RoutedTokens routed;
  std::vector<float> x, goal;

  Layer(std::mt19937& random, int64_t hidden_size, int64_t inner, int64_t count, size_t experts)
      : hidden(hidden_size), width(inner), tokens(count) {
    const auto size = static_cast<size_t>(hidden * width);
    const float scale = 1 / std::sqrt(static_cast<float>(hidden));
    for (size_t e = 0; e < experts; ++e) {
      dense.push_back({normal_floats(random, size, scale), normal_floats(random, size, scale),
                       normal_floats(random, size, 1 / std::sqrt(static_cast<float>(width)))});
      pruned.push_back(dense.back());
      for (std::vector<float>& matrix : pruned.back()) {
        for (float& weight : matrix) {
          if (random() % 2 == 0) weight = 0;
        }
      }
    }
    x = normal_floats(random, static_cast<size_t>(tokens * hidden));
    std::uniform_real_distribution<float> gate(0.2f, 0.8f);
    for (int64_t t = 0; t < tokens; ++t) {
      const size_t a = random() % experts;
      const size_t b = (a + 1 + random() % (experts - 1)) % experts;
      const float g = gate(random);
      routed.routes.push_back({static_cast<int32_t>(a), g});
      routed.routes.push_back({static_cast<int32_t>(b), 1 - g});
      routed.first.push_back(static_cast<int64_t>(routed.routes.size()));
    }
    goal.resize(x.size());
    for (int64_t t = 0; t < tokens; ++t) {
      const std::vector<double> y = output(dense, t);
      for (int64_t k = 0; k < hidden; ++k)
        goal[static_cast<size_t>(t * hidden + k)] = static_cast<float>(y[static_cast<size_t>(k)]);
    }
  }

  // Σ g·E(x) of a token in float64.
  template <class Experts>
  std::vector<double> output(const Experts& experts, int64_t t) const {
    std::vector<double> sum(static_cast<size_t>(hidden));
    for (int64_t r = routed.first[static_cast<size_t>(t)]; r < routed.first[static_cast<size_t>(t) + 1]; ++r) {
      const auto [e, g] = routed.routes[static_cast<size_t>(r)];
      const auto& expert = experts[static_cast<size_t>(e)];
      for (int64_t i = 0; i < width; ++i) {
        double gate = 0;
        double up = 0;
        for (int64_t k = 0; k < hidden; ++k) {
          const double value = x[static_cast<size_t>(t * hidden + k)];
          gate += expert[0][static_cast<size_t>(i * hidden + k)] * value;
          up += expert[1][static_cast<size_t>(i * hidden + k)] * value;
        }
        const double activation = gate / (1 + std::exp(-gate)) * up;
        for (int64_t k = 0; k < hidden; ++k)
          sum[static_cast<size_t>(k)] += g * activation * expert[2][static_cast<size_t>(k * width + i)];
      }
    }
    return sum;
  }

  // Σ ‖missing‖² over all tokens in float64.
  template <class Experts>
  double loss(const Experts& experts) const {
    double sum = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const std::vector<double> y = output(experts, t);
      for (int64_t k = 0; k < hidden; ++k) {
        const double missing = goal[static_cast<size_t>(t * hidden + k)] - y[static_cast<size_t>(k)];
        sum += missing * missing;
      }
    }
    return sum;
  }
};

HiddenFile file_of(const std::vector<float>& values, int64_t hidden) {
  static int made = 0;
  const auto path = std::filesystem::temp_directory_path() /
                    ("espalier-recover-" + std::to_string(std::random_device{}()) + std::to_string(made++));
  Result<HiddenFile> file = HiddenFile::create_temporary(path.string(), hidden);
  REQUIRE(file.is_ok());
  REQUIRE(file.value().write(0, static_cast<int64_t>(values.size()) / hidden, values.data()).is_ok());
  return std::move(file.value());
}

struct Outcome {
  RecoverReport report;
  std::vector<ExpertFloats> experts;
};

Outcome recover(const Layer& layer, int threads, const RecoverOptions& options) {
  ThreadPool pool(threads);
  const HiddenFile input = file_of(layer.x, layer.hidden);
  const HiddenFile goal = file_of(layer.goal, layer.hidden);
  const SquaredLoss loss(layer.hidden, 1);
  const RecoverRequest request{&layer.routed, 0, &input, &goal, layer.hidden, &loss, layer.tokens / 8};
  Outcome outcome{{}, layer.pruned};
  const Result<RecoverReport> report =
      recover_experts(pool, request, layer.dense, outcome.experts, options, {}, nullptr);
  REQUIRE(report.is_ok());
  outcome.report = report.value();
  return outcome;
}

size_t zeros_in(const ExpertFloats& expert) {
  size_t zeros = 0;
  for (const auto& matrix : expert) zeros += static_cast<size_t>(std::count(matrix.begin(), matrix.end(), 0.0f));
  return zeros;
}

// A step of Adam that leaves the gradient in `mean` and does not move the weights.
constexpr AdamStep kReadGradient{.mean_decay = 0, .square_decay = 1, .rate = 0, .epsilon = 1};

TEST_CASE("gradients of a batch are the finite differences of the float64 loss, and zeros have none") {
  std::mt19937 random(test::fresh_seed());
  const Layer layer(random, 100, 30, 110, 3);
  ThreadPool pool(2);
  const HiddenFile input = file_of(layer.x, layer.hidden);
  const HiddenFile goal = file_of(layer.goal, layer.hidden);
  std::vector<ExpertTrainer> trainers;
  for (const ExpertFloats& weights : layer.pruned) {
    trainers.emplace_back(ExpertTrainer::Matrices{TrainedMatrix(30, 100, 1, weights[0]),
                                                  TrainedMatrix(30, 100, 1, weights[1]),
                                                  TrainedMatrix(100, 30, 1, weights[2])});
  }
  RoutedBatch batch(pool, trainers, 0, layer.routed, input, goal, layer.hidden);
  std::vector<int64_t> tokens(static_cast<size_t>(layer.tokens));
  std::iota(tokens.begin(), tokens.end(), 0);
  const SquaredLoss squared(layer.hidden, 1);
  REQUIRE(batch.forward(tokens).is_ok());
  CHECK(batch.loss(squared).value() == doctest::Approx(layer.loss(layer.pruned)).epsilon(1e-4));
  REQUIRE(batch.backward(squared).is_ok());
  batch.step(kReadGradient);

  std::vector<std::array<std::vector<double>, 3>> weights;
  for (const ExpertFloats& expert : layer.pruned) {
    auto& copy = weights.emplace_back();
    for (size_t m = 0; m < 3; ++m) copy[m].assign(expert[m].begin(), expert[m].end());
  }
  int checked = 0;
  while (checked < 36) {
    const size_t e = random() % 3;
    const size_t m = static_cast<size_t>(checked) % 3;
    const size_t i = random() % layer.pruned[e][m].size();
    const float found = trainers[e].matrices()[m].mean[i];
    if (layer.pruned[e][m][i] == 0) {
      CHECK(found == 0);
      continue;
    }
    const double kept = weights[e][m][i];
    constexpr double kStep = 1e-4;
    weights[e][m][i] = kept + kStep;
    const double above = layer.loss(weights);
    weights[e][m][i] = kept - kStep;
    const double below = layer.loss(weights);
    weights[e][m][i] = kept;
    const double expected = (above - below) / (2 * kStep);
    CAPTURE(e);
    CAPTURE(m);
    CAPTURE(i);
    CHECK(std::abs(found - expected) <= 2e-3 * std::abs(expected) + 2e-3);
    ++checked;
  }
}

TEST_CASE("the gradient of the logits loss is the finite difference of the float64 divergence") {
  std::mt19937 random(test::fresh_seed());
  constexpr int64_t kHidden = 100;
  constexpr int64_t kVocabulary = 130;
  constexpr int64_t kTokens = 5;
  const std::vector<float> dense = normal_floats(random, kTokens * kHidden);
  const std::vector<float> missing = normal_floats(random, kTokens * kHidden, 0.3f);
  const std::vector<float> norm = normal_floats(random, kHidden);
  const std::vector<float> head = normal_floats(random, kVocabulary * kHidden, 0.2f);
  const auto distribution = [&](const std::vector<double>& state) {
    double squares = 0;
    for (const double value : state) squares += value * value;
    const double scale = 1 / std::sqrt(squares / kHidden + 1e-5);
    std::vector<double> p(kVocabulary);
    double sum = 0;
    for (size_t v = 0; v < p.size(); ++v) {
      for (size_t k = 0; k < kHidden; ++k) p[v] += head[v * kHidden + k] * norm[k] * state[k] * scale;
      p[v] = std::exp(p[v]);
      sum += p[v];
    }
    for (double& value : p) value /= sum;
    return p;
  };
  const auto divergence = [&](size_t t, const std::vector<double>& state) {
    const std::vector<double> p = distribution(
        {dense.begin() + static_cast<int64_t>(t) * kHidden, dense.begin() + static_cast<int64_t>(t + 1) * kHidden});
    const std::vector<double> q = distribution(state);
    double sum = 0;
    for (size_t v = 0; v < p.size(); ++v) sum += p[v] * std::log(p[v] / q[v]);
    return sum;
  };
  const HiddenFile file = file_of(dense, kHidden);
  const Result<LogitsLoss> loss = LogitsLoss::create(file, norm, 1e-5f, head);
  REQUIRE(loss.is_ok());
  const std::vector<int64_t> tokens = {0, 1, 2, 3, 4};
  std::vector<float> gradient = missing;
  REQUIRE(loss.value().gradient(tokens.data(), kTokens, gradient.data()).is_ok());
  double all = 0;
  for (size_t t = 0; t < kTokens; ++t) {
    std::vector<double> state(kHidden);
    for (size_t k = 0; k < kHidden; ++k)
      state[k] = static_cast<double>(dense[t * kHidden + k]) - missing[t * kHidden + k];
    all += divergence(t, state);
    for (size_t k = 0; k < kHidden; k += 13) {
      const double kept = state[k];
      state[k] = kept + 1e-4;
      const double above = divergence(t, state);
      state[k] = kept - 1e-4;
      const double below = divergence(t, state);
      state[k] = kept;
      CHECK(gradient[t * kHidden + k] == doctest::Approx((above - below) / 2e-4).epsilon(1e-3).scale(0.01));
    }
  }
  CHECK(loss.value().loss(tokens.data(), kTokens, missing.data()).value() == doctest::Approx(all).epsilon(1e-4));
}

TEST_CASE("recovery lowers the loss and keeps the zeros where they are") {
  std::mt19937 random(test::fresh_seed());
  Layer layer(random, 40, 48, 1600, 4);
  // Halves of random experts cannot be made whole, so what is kept is spoilt too.
  std::uniform_real_distribution<float> spoil(0, 2);
  for (ExpertFloats& expert : layer.pruned) {
    for (std::vector<float>& matrix : expert) {
      for (float& weight : matrix) weight *= spoil(random);
    }
  }
  const Outcome outcome = recover(layer, 2, {.epochs = 20, .batch = 200, .learning_rate = 0.05});
  CHECK(outcome.report.epoch > 0);
  CHECK(outcome.report.after < 0.95 * outcome.report.before);
  CHECK(layer.loss(outcome.experts) < 0.95 * layer.loss(layer.pruned));
  for (size_t e = 0; e < 4; ++e) {
    for (size_t m = 0; m < 3; ++m) {
      for (size_t i = 0; i < layer.pruned[e][m].size(); ++i) {
        if (layer.pruned[e][m][i] == 0) REQUIRE(outcome.experts[e][m][i] == 0);
      }
    }
  }
}

TEST_CASE("gradual recovery gives each expert its number of zeros and does better than zeros chosen at random") {
  std::mt19937 random(test::fresh_seed());
  const Layer layer(random, 40, 48, 1600, 4);
  const RecoverOptions options{.epochs = 20, .batch = 200, .learning_rate = 0.05};
  RecoverOptions gradual = options;
  gradual.gradual = true;
  const Outcome chosen = recover(layer, 2, gradual);
  CHECK(chosen.report.epoch > 0);
  CHECK(chosen.report.after < recover(layer, 2, options).report.after);
  for (size_t e = 0; e < 4; ++e) CHECK(zeros_in(chosen.experts[e]) == zeros_in(layer.pruned[e]));
}

TEST_CASE("recovery gives the same bytes for any number of threads") {
  std::mt19937 random(test::fresh_seed());
  const Layer layer(random, 40, 100, 1200, 3);
  const RecoverOptions options{.epochs = 20, .batch = 200, .learning_rate = 0.05, .gradual = true};
  const Outcome expected = recover(layer, 1, options);
  CHECK(expected.report.epoch > 0);
  for (const int threads : {2, 5}) {
    const Outcome found = recover(layer, threads, options);
    CHECK(found.report.after == expected.report.after);
    CHECK(found.experts == expected.experts);
  }
}

TEST_CASE("a learning rate that ruins the experts leaves them as they were given") {
  std::mt19937 random(test::fresh_seed());
  const Layer layer(random, 24, 32, 400, 3);
  const Outcome outcome = recover(layer, 2, {.epochs = 2, .batch = 100, .learning_rate = 1e4});
  CHECK(outcome.report.epoch == 0);
  CHECK(outcome.report.after == outcome.report.before);
  CHECK(outcome.experts == layer.pruned);
}

TEST_CASE("inputs that are all zero, and no tokens at all, change nothing") {
  std::mt19937 random(test::fresh_seed());
  Layer layer(random, 24, 32, 200, 3);
  std::fill(layer.x.begin(), layer.x.end(), 0.0f);
  std::fill(layer.goal.begin(), layer.goal.end(), 0.0f);
  const Outcome blank = recover(layer, 2, {.epochs = 2, .batch = 50});
  CHECK(blank.report.before == 0);
  CHECK(blank.experts == layer.pruned);

  layer.routed = {};
  layer.tokens = 0;
  const Outcome empty = recover(layer, 2, {.epochs = 2, .batch = 50});
  CHECK(empty.report.epoch == 0);
  CHECK(empty.experts == layer.pruned);
}

TEST_CASE("recovery stops when it is cancelled and tells how far it is") {
  std::mt19937 random(test::fresh_seed());
  Layer layer(random, 24, 32, 400, 3);
  ThreadPool pool(2);
  const HiddenFile input = file_of(layer.x, layer.hidden);
  const HiddenFile goal = file_of(layer.goal, layer.hidden);
  const SquaredLoss loss(layer.hidden, 1);
  const RecoverRequest request{&layer.routed, 0, &input, &goal, layer.hidden, &loss, 50};
  std::atomic<bool> cancel{false};
  std::vector<int64_t> told;
  const std::vector<ExpertFloats> before = layer.pruned;
  const Result<RecoverReport> report = recover_experts(
      pool, request, layer.dense, layer.pruned, {.epochs = 4, .batch = 50},
      [&](int64_t done, int64_t total) {
        CHECK(total == 28);
        told.push_back(done);
        if (done == 3) cancel = true;
      },
      &cancel);
  CHECK(report.status().code() == Code::kAborted);
  CHECK(told == std::vector<int64_t>{1, 2, 3});
  CHECK(layer.pruned == before);
}

TEST_CASE("the weights that go first are those whose loss costs the least, over all three matrices") {
  // hidden 1, width 2: costs are (rows · reach · input) · w² for gate and up, activation · w² for down.
  ExpertTrainer expert(
      {TrainedMatrix(2, 1, 1, {1, 2}), TrainedMatrix(2, 1, 1, {3, 1}), TrainedMatrix(1, 2, 1, {1, 2})});
  Sensitivity sensitivity(1, 2);
  sensitivity.tokens = 2;
  sensitivity.input = {4};          // mean 2
  sensitivity.gate = {1, 1};        // costs 1·1·2·1 = 2 and 1·4·2·4 = 32
  sensitivity.up = {0.1, 1};        // costs 0.1·1·2·9 = 1.8 and 1·4·2·1 = 8
  sensitivity.activation = {7, 1};  // costs 7 and 4
  drop_least(expert, sensitivity, 4);
  CHECK(expert.matrices()[0].weight == std::vector<float>{0, 2});
  CHECK(expert.matrices()[1].weight == std::vector<float>{0, 1});
  CHECK(expert.matrices()[2].weight == std::vector<float>{0, 0});
  CHECK(zeros_of(expert) == 4);
  CHECK(scheduled_zeros(100, 0) == 30);
  CHECK(scheduled_zeros(100, 1) == 100);
  CHECK(scheduled_zeros(100, 2) == 100);
}

}  // namespace
}  // namespace espalier
