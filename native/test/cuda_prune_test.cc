// A whole layer pruned with --device cuda against the same layer pruned on the CPU.
#include <unistd.h>

#include <cstdio>
#include <future>
#include <string>

#include "checkpoint/mapped_file.h"
#include "gpu.h"
#include "prune/hidden_file.h"
#include "prune/layer_pruner.h"

using namespace espalier;
using test::floats;

namespace {

constexpr int64_t kHidden = 128;
constexpr int64_t kWidth = 208;
constexpr int kExperts = 3;
constexpr int64_t kTokens = 600;

class Files {
 public:
  Files() : base_("/tmp/espalier_cuda_prune_test." + std::to_string(::getpid())) {}
  ~Files() {
    for (const char* name : {"weights", "others", "input", "output", "scratch"}) ::unlink(of(name).c_str());
  }
  std::string of(const char* name) const { return base_ + "." + name; }

 private:
  std::string base_;
};

// Random weights in bf16, top-2 of kExperts.
LayerSpec make_layer(const std::string& path) {
  LayerSpec spec;
  std::vector<uint16_t> elements;
  struct Place {
    WeightRef* ref;
    int64_t offset;
  };
  std::vector<Place> places;
  const auto matrix = [&](int64_t rows, int64_t cols, WeightRef& ref) {
    ref = {.name = "weight", .dtype = DType::kBF16, .rows = rows, .cols = cols, .values = {}, .bitmask = {}};
    places.push_back({&ref, static_cast<int64_t>(elements.size()) * 2});
    for (const float value : floats(static_cast<size_t>(rows * cols), 0.1f)) {
      elements.push_back(float_to_bf16(rows == 1 ? 1.0f : value));
    }
  };
  spec.attention.heads = 2;
  spec.attention.kv_heads = 1;
  spec.attention.head_dim = 64;
  spec.attention.scale = 0.125f;
  spec.feed_forward.resize(1);
  FeedForwardPartSpec& part = spec.feed_forward[0];
  part.kind = FeedForwardPartSpec::Kind::kRouted;
  part.routing.top_k = 2;
  part.routing.renormalise = true;
  part.experts.resize(kExperts);
  matrix(1, kHidden, spec.attention_norm);
  matrix(1, kHidden, spec.feed_forward_norm);
  matrix(128, kHidden, spec.attention.q);
  matrix(64, kHidden, spec.attention.k);
  matrix(64, kHidden, spec.attention.v);
  matrix(kHidden, 128, spec.attention.o);
  matrix(kExperts, kHidden, part.router);
  for (int e = 0; e < kExperts; ++e) {
    MlpSpec& mlp = part.experts[static_cast<size_t>(e)];
    part.expert_of_row.push_back(e);
    matrix(kWidth, kHidden, mlp.gate);
    matrix(kWidth, kHidden, mlp.up);
    matrix(kHidden, kWidth, mlp.down);
  }
  std::FILE* file = std::fopen(path.c_str(), "wb");
  REQUIRE(file != nullptr);
  REQUIRE(std::fwrite(elements.data(), 2, elements.size(), file) == elements.size());
  std::fclose(file);
  const auto mapped = MappedFile::open(path);
  REQUIRE(mapped.is_ok());
  for (const Place& place : places) {
    place.ref->values.file = mapped.value();
    place.ref->values.offset = place.offset;
    place.ref->values.bytes = place.ref->rows * place.ref->cols * 2;
  }
  return spec;
}

struct Pruned {
  std::vector<uint16_t> weights;  // of all matrices
  std::vector<ExpertMatrixReport> reports;
};

void write_input(const Files& files) {
  auto input = HiddenFile::create(files.of("input"), kHidden);
  REQUIRE(input.is_ok());
  test::require(input.value().write(0, kTokens, floats(kTokens * kHidden).data()));
}

std::unique_ptr<LayerPruner> load(const LayerSpec& spec, bool gpu) {
  RopeSpec rope;
  for (int i = 0; i < 32; ++i) rope.inverse_frequencies.push_back(std::pow(1e4f, -2.0f * static_cast<float>(i) / 64));
  auto loaded =
      LayerPruner::load(2, spec, rope, kHidden, 1e-5f, false, gpu ? std::optional<int>(0) : std::optional<int>());
  REQUIRE_MESSAGE(loaded.is_ok(), loaded.status().message());
  return std::move(loaded.value());
}

ForwardRequest over_input(const Files& files) {
  ForwardRequest request;
  request.input = files.of("input");
  request.lengths.assign(4, kTokens / 4);
  return request;
}

// What the layer makes of the input.
std::vector<float> output_of(LayerPruner& pruner, const Files& files) {
  ForwardRequest request = over_input(files);
  request.output = files.of("output");
  test::require(pruner.forward(request, {}, nullptr));
  const auto file = HiddenFile::open_for_reading(files.of("output"), kHidden);
  REQUIRE(file.is_ok());
  std::vector<float> states(static_cast<size_t>(kTokens * kHidden), NAN);
  test::require(file.value().read(0, kTokens, states.data()));
  ::unlink(files.of("output").c_str());
  return states;
}

PartSurvey survey(const LayerSpec& spec, const Files& files, bool gpu) {
  const SurveyOptions options{.logit_products = true, .mean_outputs = true, .keep = 2};
  const auto surveyed = load(spec, gpu)->survey(over_input(files), options, {}, nullptr);
  REQUIRE_MESSAGE(surveyed.is_ok(), surveyed.status().message());
  REQUIRE(surveyed.value().size() == 1);
  return surveyed.value().front();
}

Pruned prune(const LayerSpec& spec, const Files& files, const MethodPlan& plan, bool gpu) {
  const std::unique_ptr<LayerPruner> loaded = load(spec, gpu);
  LayerPruner& pruner = *loaded;
  ForwardRequest request = over_input(files);
  const bool updates = plan.update != Update::kNone;
  request.collect = StatisticsRequest{.gram = updates,
                                      .pooled = updates,
                                      .router_weighted = true,
                                      .together = kExperts,
                                      .scratch = files.of("scratch")};
  test::require(pruner.forward(request, {}, nullptr));
  const auto reports = pruner.prune(plan, {}, nullptr);
  REQUIRE_MESSAGE(reports.is_ok(), reports.status().message());
  Pruned out{{}, reports.value()};
  for (const ExpertMatrixReport& report : out.reports) {
    const auto tensor = pruner.tensor(report.id);
    REQUIRE(tensor.is_ok());
    const auto* bits = reinterpret_cast<const uint16_t*>(tensor.value().data());
    out.weights.insert(out.weights.end(), bits, bits + tensor.value().size() / 2);
  }
  return out;
}

}  // namespace

TEST_CASE("a layer pruned on a GPU is the one pruned on the CPU, but for scores that rounding decides between") {
  if (!test::has_gpu()) return;
  const Files files;
  const LayerSpec spec = make_layer(files.of("weights"));
  write_input(files);
  MethodPlan shrunk = MethodPlan::sparsegpt(Budget::unstructured(0.5));
  shrunk.shrinkage = 0.2;
  const MethodPlan plans[] = {
      MethodPlan::magnitude(Budget::unstructured(0.5)), MethodPlan::activation(Budget::unstructured(0.5)),
      MethodPlan::relative(Budget::unstructured(0.5)),  MethodPlan::sparsegpt(Budget::unstructured(0.5)),
      MethodPlan::sparsegpt(Budget::n_of_m(2, 4)),      shrunk};
  for (const MethodPlan& plan : test::some_of(plans, 2)) {
    CAPTURE(static_cast<int>(plan.update));
    CAPTURE(plan.shrinkage);
    const Pruned wanted = prune(spec, files, plan, false);
    const Pruned found = prune(spec, files, plan, true);
    REQUIRE(found.weights.size() == wanted.weights.size());
    int64_t choices = 0;
    double difference = 0;
    double norm = 0;
    for (size_t i = 0; i < found.weights.size(); ++i) {
      const auto a = static_cast<double>(bf16_to_float(found.weights[i]));
      const auto b = static_cast<double>(bf16_to_float(wanted.weights[i]));
      choices += (a == 0) != (b == 0) ? 1 : 0;
      difference += (a - b) * (a - b);
      norm += b * b;
    }
    MESSAGE(choices << " other choices of " << found.weights.size() << ", weights " << std::sqrt(difference / norm)
                    << " apart");
    CHECK(static_cast<double>(choices) < 2e-3 * static_cast<double>(found.weights.size()));
    CHECK(difference < 1e-4 * norm);
    REQUIRE(found.reports.size() == wanted.reports.size());
    for (size_t m = 0; m < found.reports.size(); ++m) {
      CHECK(found.reports[m].id == wanted.reports[m].id);
      CHECK(found.reports[m].tokens == wanted.reports[m].tokens);
      CHECK(found.reports[m].matrix.damping == wanted.reports[m].matrix.damping);
      CHECK(found.reports[m].matrix.shrunk == wanted.reports[m].matrix.shrunk);
      CHECK(found.reports[m].matrix.starved == wanted.reports[m].matrix.starved);
    }
  }
}

TEST_CASE("a survey of experts on a GPU is that of the CPU, but for float32 sums and tokens near a tie") {
  if (!test::has_gpu()) return;
  const Files files;
  const LayerSpec spec = make_layer(files.of("weights"));
  write_input(files);
  const PartSurvey wanted = survey(spec, files, false);
  const PartSurvey found = survey(spec, files, true);
  CHECK(found.tokens == kTokens);
  CHECK(found.top_k == wanted.top_k);
  CHECK(found.experts == kExperts);
  REQUIRE(found.coactivation.size() == wanted.coactivation.size());
  double moved = 0;
  for (size_t i = 0; i < wanted.coactivation.size(); ++i) {
    moved += std::abs(found.coactivation[i] - wanted.coactivation[i]);
  }
  // A token that goes to another expert is counted in four places.
  CHECK(moved <= 4 * 3);
  MESSAGE((moved / 4) << " tokens went to other experts");
  const auto close = [](const std::string& name, const std::vector<double>& a, const std::vector<double>& b,
                        double bound) {
    REQUIRE(a.size() == b.size());
    REQUIRE(!b.empty());
    const double error = test::relative_error(a, b);
    MESSAGE(name << ": " << error);
    CHECK(error < bound);
  };
  // What counts the tokens of an expert moves with them.
  const double routed = moved == 0 ? 1e-4 : 2e-2;
  close("family", found.family, wanted.family, routed);
  close("losses", found.losses, wanted.losses, routed);
  close("gate ratios", found.gate_ratios, wanted.gate_ratios, 1e-4);
  close("probabilities", found.probabilities, wanted.probabilities, 1e-4);
  close("products of logits", found.logit_products, wanted.logit_products, 1e-4);
  close("mean outputs", found.mean_outputs, wanted.mean_outputs, 1e-4);
}

TEST_CASE("a layer is loaded and uploaded while another one runs, and both give what they give alone") {
  if (!test::has_gpu()) return;
  const Files files;
  const LayerSpec first = make_layer(files.of("weights"));
  const LayerSpec second = make_layer(files.of("others"));
  write_input(files);
  const std::vector<float> of_first = output_of(*load(first, true), files);
  const std::vector<float> of_second = output_of(*load(second, true), files);
  CHECK(of_first != of_second);
  for (int repeat = 0; repeat < (test::is_emulated() ? 1 : 5); ++repeat) {
    const std::unique_ptr<LayerPruner> runs = load(first, true);
    auto ahead = std::async(std::launch::async, [&] {
      std::unique_ptr<LayerPruner> loaded = load(second, true);
      const Status prepared = loaded->prepare();
      return prepared.is_ok() ? std::move(loaded) : nullptr;
    });
    CHECK(output_of(*runs, files) == of_first);
    const std::unique_ptr<LayerPruner> next = ahead.get();
    REQUIRE(next != nullptr);
    CHECK(output_of(*next, files) == of_second);
  }
}

TEST_CASE("a layer that finds no room on the GPU ahead is uploaded when it runs") {
  if (!test::has_gpu()) return;
  const Files files;
  const LayerSpec spec = make_layer(files.of("weights"));
  write_input(files);
  const std::vector<float> wanted = output_of(*load(spec, true), files);
  const std::unique_ptr<LayerPruner> pruner = load(spec, true);
  {
    std::vector<cuda::DeviceMemory> everything;
    for (int64_t bytes = int64_t{1} << 37; bytes >= 512;) {
      auto taken = cuda::DeviceMemory::allocate(bytes);
      if (taken.is_ok()) {
        everything.push_back(std::move(taken.value()));
      } else {
        bytes /= 2;
      }
    }
    test::require(pruner->prepare());
    ForwardRequest request = over_input(files);
    CHECK(pruner->forward(request, {}, nullptr).code() == Code::kOutOfMemory);
  }
  CHECK(output_of(*pruner, files) == wanted);
}
