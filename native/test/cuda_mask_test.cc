// Masks chosen on a GPU are those of the CPU, whatever the shape, with ties and without.
#include <algorithm>

#include "gpu.h"
#include "kernels/cuda/relative_scores.h"
#include "prune/cuda/device_masks.h"
#include "prune/score.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;

namespace {

// Statistics of inputs as long as `norms`.
PreparedSite site_of(const std::vector<float>& norms) {
  PreparedSite site;
  site.norms = norms;
  return site;
}

}  // namespace

TEST_CASE("a matrix pruned with masks of a GPU has the bytes of one pruned on the CPU") {
  if (!test::has_gpu()) return;
  ThreadPool pool(2);
  Result<Stream> stream = Stream::create();
  REQUIRE(stream.is_ok());
  DeviceMasks masks(0, pool, stream.value().get());
  MethodPlan relative_under_one_threshold = MethodPlan::relative(Budget::unstructured(0.6));
  relative_under_one_threshold.comparison = Comparison::kMatrix;
  relative_under_one_threshold.power = 1.5;
  struct Case {
    MethodPlan plan;
    int64_t unit;  // cols are a multiple of it
    bool taken = true;
  };
  const Case cases[] = {
      {MethodPlan::magnitude(Budget::unstructured(0.5)), 1},
      {MethodPlan::magnitude(Budget::unstructured(0)), 1},
      {MethodPlan::magnitude(Budget::n_of_m(2, 4)), 4},
      {MethodPlan::activation(Budget::unstructured(0.5)), 1},
      {MethodPlan::activation(Budget::unstructured(0)), 1},
      {MethodPlan::activation(Budget::unstructured(0.97)), 1},
      {MethodPlan::activation(Budget::n_of_m(16, 32)), 32},
      {MethodPlan::activation(Budget::n_of_m(1, 3)), 3},
      {MethodPlan::activation(Budget::n_of_m(100, 256)), 256, false},
      {MethodPlan::relative(Budget::unstructured(0.5)), 1},
      {MethodPlan::relative(Budget::n_of_m(2, 4)), 4},
      {relative_under_one_threshold, 1},
  };
  for (const Case& one : cases) {
    for (const bool tied : {false, true}) {
      for (const int most : test::some_of({4, 60, 700, 15000}, 2)) {
        const int64_t rows = draw(1, most > 1000 ? 6 : 90);
        const int64_t cols = (draw(1, most) + one.unit - 1) / one.unit * one.unit;
        std::vector<float> dense = floats(static_cast<size_t>(rows * cols), 0.02f);
        std::vector<float> norms = floats(static_cast<size_t>(cols), 3);
        for (float& norm : norms) norm = tied ? 2.0f : std::abs(norm);
        if (tied) {
          for (float& weight : dense) weight = std::round(weight * 100) / 100;
        }
        CAPTURE(rows);
        CAPTURE(cols);
        const PreparedSite site = site_of(norms);
        std::vector<float> wanted = dense;
        std::vector<float> found = dense;
        const Result<MatrixReport> on_cpu = prune_matrix(pool, one.plan, site, wanted.data(), rows, cols);
        REQUIRE(on_cpu.is_ok());
        const Result<MatrixReport> on_gpu = prune_matrix(pool, one.plan, site, found.data(), rows, cols, &masks);
        REQUIRE_MESSAGE(on_gpu.is_ok(), on_gpu.status().message());
        CHECK(found == wanted);
        CHECK(on_gpu.value().zeros == on_cpu.value().zeros);
        const Result<bool> taken = masks.apply(one.plan, norms.data(), found.data(), rows, cols);
        REQUIRE(taken.is_ok());
        CHECK(taken.value() == one.taken);
      }
    }
  }
}

TEST_CASE("relative scores of a GPU have the bits of the CPU's") {
  if (!test::has_gpu()) return;
  ThreadPool pool(2);
  for (int repeat = 0; repeat < 20; ++repeat) {
    const int64_t rows = draw(1, 300);
    const int64_t cols = draw(1, 700);
    std::vector<float> weights = floats(static_cast<size_t>(rows * cols), 0.02f);
    // Of an empty row or column there is no share.
    const int64_t empty_row = draw(0, static_cast<int>(rows) - 1);
    const int64_t empty_col = draw(0, static_cast<int>(cols) - 1);
    for (int64_t c = 0; c < cols; ++c) weights[static_cast<size_t>(empty_row * cols + c)] = 0;
    for (int64_t r = 0; r < rows; ++r) weights[static_cast<size_t>(r * cols + empty_col)] = 0;
    std::vector<float> norms = floats(static_cast<size_t>(cols), 3);
    for (float& norm : norms) norm = std::abs(norm);
    const double power = repeat % 2 == 0 ? 0.5 : 1;
    CAPTURE(rows);
    CAPTURE(cols);
    std::vector<float> wanted(weights.size(), -1);
    score_relative(pool, weights.data(), rows, cols, norms.data(), power, wanted.data());
    const test::OnGpu<float> found(weights);
    const test::OnGpu<double> lengths(relative_lengths(norms.data(), cols, power));
    const test::OnGpu<double> shares(static_cast<size_t>(rows + cols));
    test::require(score_relative(
        {.weights = found.get(), .rows = rows, .cols = cols, .lengths = lengths.get(), .shares = shares.get()},
        nullptr));
    CHECK(found.host() == wanted);
  }
}
