#include "prune/layer_statistics.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "test_main.h"

using namespace espalier;

namespace {

constexpr int64_t kHidden = 40;
constexpr int64_t kWidth = 104;  // more than one panel
constexpr int kExperts = 5;
constexpr int kTopK = 2;

// A routed part of random float32 weights, which lie in a file as in a checkpoint.
class RandomPart {
 public:
  explicit RandomPart(std::mt19937& random) {
    FeedForwardPartSpec spec;
    spec.kind = FeedForwardPartSpec::Kind::kRouted;
    const std::string path = std::filesystem::temp_directory_path() / ("espalier-part-" + std::to_string(random()));
    std::vector<float> all;
    const auto matrix = [&](int64_t rows, int64_t cols) {
      const auto begin = static_cast<int64_t>(all.size() * sizeof(float));
      const std::vector<float> values = test::normal_floats(random, static_cast<size_t>(rows * cols), 0.2f);
      all.insert(all.end(), values.begin(), values.end());
      return WeightRef{.name = "matrix",
                       .dtype = DType::kF32,
                       .rows = rows,
                       .cols = cols,
                       .values = {.file = nullptr, .offset = begin, .bytes = rows * cols * 4},
                       .bitmask = {}};
    };
    spec.router = matrix(kExperts, kHidden);
    spec.routing.top_k = kTopK;
    for (int e = 0; e < kExperts; ++e) {
      spec.expert_of_row.push_back(e);
      spec.experts.push_back({matrix(kWidth, kHidden), matrix(kWidth, kHidden), matrix(kHidden, kWidth)});
    }
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(all.data()), static_cast<std::streamsize>(all.size() * sizeof(float)));
    Result<std::shared_ptr<MappedFile>> file = MappedFile::open(path);
    REQUIRE(file.is_ok());
    spec.router.values.file = file.value();
    for (MlpSpec& mlp : spec.experts) {
      for (WeightRef* ref : {&mlp.gate, &mlp.up, &mlp.down}) ref->values.file = file.value();
    }
    Result<FeedForwardPart> part = FeedForwardPart::load(pool, {}, {}, spec);
    REQUIRE(part.is_ok());
    parts.push_back(std::move(part.value()));
    std::filesystem::remove(path);
  }

  void run(const std::vector<float>& x, int64_t first, int64_t rows, Observer& observer) {
    std::vector<float> out(static_cast<size_t>(rows * kHidden));
    parts[0].forward(compute, x.data() + first * kHidden, rows, kHidden, out.data(), &observer, 0);
  }

  ThreadPool pool{2};
  Compute compute{pool, cpu_kernels()};
  std::vector<FeedForwardPart> parts;
};

// Σ g²·x·xᵀ of what experts read, in float64, each expert by itself and all together.
struct Expected final : public Observer {
  std::vector<std::vector<double>> experts = std::vector(kExperts, std::vector<double>(kHidden* kHidden));
  std::vector<double> all = std::vector<double>(kHidden * kHidden);
  bool weighted;

  explicit Expected(bool router_weighted) : weighted(router_weighted) {}
  void on_expert(const ExpertBatch& batch) override {
    for (int64_t r = 0; r < batch.rows; ++r) {
      const double gate = weighted ? static_cast<double>(batch.gates[r]) : 1;
      const float* x = batch.input + r * kHidden;
      for (int64_t i = 0; i < kHidden * kHidden; ++i) {
        const double product = gate * gate * static_cast<double>(x[i / kHidden]) * static_cast<double>(x[i % kHidden]);
        experts[static_cast<size_t>(batch.expert)][static_cast<size_t>(i)] += product;
        all[static_cast<size_t>(i)] += product;
      }
    }
  }
};

double worst_difference(const SiteStatistics& site, const std::vector<double>& expected) {
  double worst = 0;
  for (int64_t i = 0; i < kHidden; ++i) {
    for (int64_t j = i; j < kHidden; ++j) {
      const double scale = std::sqrt(expected[static_cast<size_t>(i * (kHidden + 1))] *
                                     expected[static_cast<size_t>(j * (kHidden + 1))]);
      const double difference = static_cast<double>(site.gram(i, j)) - expected[static_cast<size_t>(i * kHidden + j)];
      worst = std::max(worst, std::fabs(difference) / std::max(scale, 1e-30));
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("an expert's statistics have the same bytes however many are summed together, and are those of its tokens") {
  std::mt19937 random(test::fresh_seed());
  RandomPart part(random);
  const int64_t tokens = 700;
  const std::vector<float> x = test::normal_floats(random, static_cast<size_t>(tokens * kHidden));
  for (const bool weighted : {false, true}) {
    Expected expected(weighted);
    part.run(x, 0, tokens, expected);
    std::vector<std::vector<ExpertStatistics>> found;
    for (const int64_t together : {int64_t{0}, int64_t{2}, int64_t{kExperts}}) {
      const std::string scratch = std::filesystem::temp_directory_path() / ("espalier-" + std::to_string(random()));
      Result<std::unique_ptr<LayerStatistics>> made = LayerStatistics::create(
          part.compute, part.parts, kHidden,
          {.gram = true, .pooled = true, .router_weighted = weighted, .together = together, .scratch = scratch});
      REQUIRE(made.is_ok());
      LayerStatistics& statistics = *made.value();
      part.run(x, 0, 300, statistics);
      part.run(x, 300, tokens - 300, statistics);
      REQUIRE(statistics.status().is_ok());
      CHECK(worst_difference(*statistics.pooled(0), expected.all) < 1e-5);
      std::vector<ExpertStatistics>& own = found.emplace_back();
      for (int e = 0; e < kExperts; ++e) {
        const std::vector<double> lengths = statistics.lengths(0, e).activation.squared_norms();
        Result<ExpertStatistics> taken = statistics.take(0, e);
        REQUIRE(taken.is_ok());
        taken.value().input.finish(part.pool);
        taken.value().activation.finish(part.pool);
        CHECK(taken.value().activation.squared_norms() == lengths);
        CHECK(worst_difference(taken.value().input, expected.experts[static_cast<size_t>(e)]) < 1e-5);
        own.push_back(std::move(taken.value()));
      }
    }
    for (size_t e = 0; e < kExperts; ++e) {
      for (const std::vector<ExpertStatistics>& other : found) {
        const ExpertStatistics& first = found[0][e];
        CHECK(other[e].input.tokens() == first.input.tokens());
        bool same = true;
        for (int64_t i = 0; i < kWidth; ++i) {
          for (int64_t j = i; j < kWidth; ++j) {
            same = same && other[e].activation.gram(i, j) == first.activation.gram(i, j);
            if (j < kHidden) same = same && other[e].input.gram(i, j) == first.input.gram(i, j);
          }
        }
        CHECK(same);
      }
    }
  }
}

TEST_CASE("a file that cannot be made is an error, not lost statistics") {
  std::mt19937 random(test::fresh_seed());
  RandomPart part(random);
  const Result<std::unique_ptr<LayerStatistics>> made = LayerStatistics::create(
      part.compute, part.parts, kHidden, {.gram = true, .together = 1, .scratch = "/nowhere/at/all/statistics"});
  REQUIRE(!made.is_ok());
  CHECK(made.status().code() == Code::kIo);
}
