// Pruning and rounding in one pass: every step of the walk against float64, and what packing makes of the result.
#include <doctest/doctest.h>

#include "core/dtype.h"
#include "prune/prune_matrix.h"
#include "prune/sparsegpt.h"
#include "prune/value_grid.h"
#include "prune_site.h"
#include "sparse/packed_matrix.h"

using namespace espalier;
using reference::collect;
using reference::damped;
using reference::Matrix;
using reference::output_error;

namespace {

PackedMatrix pack(const std::vector<float>& weights, DType dtype, int64_t rows, int64_t cols, Values values) {
  std::vector<uint8_t> stored(weights.size() * 4);
  for (size_t i = 0; i < weights.size(); ++i) {
    store_float(dtype, stored.data(), static_cast<int64_t>(i), weights[i]);
  }
  ThreadPool pool(2);
  Result<PackedMatrix> packed =
      PackedMatrix::pack(pool, {Storage::kDense, values}, MatrixSource(dtype, rows, cols, stored.data()));
  REQUIRE(packed.is_ok());
  return std::move(packed.value());
}

std::vector<float> unpack(const PackedMatrix& packed) {
  ThreadPool pool(1);
  std::vector<float> out(static_cast<size_t>(packed.rows() * packed.cols()));
  packed.unpack(pool, out.data());
  return out;
}

float scale_at(const PackedMatrix& packed, int64_t row, int64_t col) {
  return f16_to_float(packed.scales(row / kTileRows)[col / kGroup * kTileRows + row % kTileRows]);
}

struct Shape {
  int64_t rows;
  int64_t cols;
  Budget budget;
  Values values;
};

const Shape kShapes[] = {
    {20, 192, Budget::unstructured(0.5), Values::kInt4}, {7, 200, Budget::unstructured(0.7), Values::kInt4},
    {20, 192, Budget::n_of_m(2, 4), Values::kInt4},      {100, 64, Budget::unstructured(0), Values::kInt4},
    {20, 200, Budget::unstructured(0.5), Values::kInt8}, {7, 160, Budget::n_of_m(4, 8), Values::kInt8},
};

}  // namespace

TEST_CASE("every step of the rounding walk is a nearest grid value and moves its error to the right, as in float64") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  for (const Shape& shape : kShapes) {
    CAPTURE(shape.rows);
    CAPTURE(shape.cols);
    const SiteStatistics site = collect(pool, random, shape.cols);
    const std::vector<float> dense = reference::normal_floats(random, shape.rows * shape.cols, 0.02f);
    MethodPlan plan = MethodPlan::sparsegpt(shape.budget);
    plan.values = shape.values;
    std::vector<float> got = dense;
    const Result<InverseFactor> factor = factor_inverse(pool, Hessian(site, {}), plan.damping);
    REQUIRE(factor.is_ok());
    const SparseGptPlan walk{.budget = shape.budget, .values = shape.values};
    REQUIRE(prune_sparsegpt(pool, factor.value(), walk, got.data(), shape.rows).is_ok());
    const PackedMatrix packed = pack(got, DType::kF32, shape.rows, shape.cols, shape.values);

    const Matrix u = reference::cholesky_upper(reference::inverse(damped(site, 0.01)));
    const double high = shape.values == Values::kInt4 ? 7 : 127;
    const double low = shape.values == Values::kInt4 ? -8 : -127;
    int64_t far = 0;
    int64_t forced = 0;
    int64_t compared = 0;
    for (int64_t r = 0; r < shape.rows; ++r) {
      std::vector<double> row(dense.begin() + r * shape.cols, dense.begin() + (r + 1) * shape.cols);
      for (int64_t j = 0; j < shape.cols; ++j) {
        const auto target = static_cast<double>(got[static_cast<size_t>(r * shape.cols + j)]);
        const auto scale = static_cast<double>(scale_at(packed, r, j));
        double& value = row[static_cast<size_t>(j)];
        if (target != 0) {
          // The weight that the walk has here may differ from this one by float32's rounding alone.
          const double q = std::clamp(value / scale, low, high);
          const double distance = std::fabs(q - target / scale);
          ++compared;
          if (distance > 0.5 + 1e-3 * std::max(1.0, high / 20)) {
            // Only to put the anchor at the end of its grid.
            (std::fabs(target / scale) > high - 0.01 ? forced : far) += 1;
          }
        }
        const double error = (value - target) / u.at(j, j);
        for (int64_t c = j; c < shape.cols; ++c) row[static_cast<size_t>(c)] -= error * u.at(j, c);
      }
    }
    CHECK(far == 0);
    CHECK(forced <= shape.rows * ((shape.cols - 1) / kGroup + 1));
    CHECK(compared > shape.rows * shape.cols / 5);
  }
}

TEST_CASE("the mask of a rounding walk is that of SparseGPT in the first block, and the budget holds in all") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t rows = 50;
  const int64_t cols = 256;
  const SiteStatistics site = collect(pool, random, cols);
  const Result<InverseFactor> factor = factor_inverse(pool, Hessian(site, {}), 0.01);
  REQUIRE(factor.is_ok());
  for (const Budget& budget : {Budget::unstructured(0.5), Budget::n_of_m(2, 4)}) {
    const std::vector<float> dense = reference::normal_floats(random, rows * cols, 0.02f);
    std::vector<float> plain = dense;
    std::vector<float> rounded = dense;
    REQUIRE(prune_sparsegpt(pool, factor.value(), {.budget = budget}, plain.data(), rows).is_ok());
    const SparseGptPlan walk{.budget = budget, .values = Values::kInt4};
    REQUIRE(prune_sparsegpt(pool, factor.value(), walk, rounded.data(), rows).is_ok());
    int64_t revived = 0;
    int64_t zeros = 0;
    for (size_t i = 0; i < dense.size(); ++i) {
      const bool first = static_cast<int64_t>(i) % cols < 128;
      revived += first && plain[i] == 0 && rounded[i] != 0;
      zeros += rounded[i] == 0;
    }
    CHECK(revived == 0);
    CHECK(zeros >= rows * cols / 2);
    CHECK(zeros < rows * cols * 3 / 4);
  }
}

TEST_CASE("what was rounded survives storage and packing: int4 to the bit, int8 to its codes and scales") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t rows = 40;
  const int64_t cols = 200;
  const SiteStatistics site = collect(pool, random, cols);
  // From weights near the least that f16 scales can express to large ones.
  for (const float size : {2e-5f, 1e-3f, 0.02f, 3.0f, 1000.0f}) {
    CAPTURE(size);
    const std::vector<float> dense = reference::normal_floats(random, rows * cols, size);
    for (const Values values : {Values::kInt8, Values::kInt4}) {
      for (const bool compensated : {true, false}) {
        MethodPlan plan = compensated ? MethodPlan::sparsegpt(Budget::unstructured(0.6))
                                      : MethodPlan::magnitude(Budget::unstructured(0.6));
        plan.values = values;
        SiteStatistics copy = collect(pool, random, cols);
        const Result<PreparedSite> prepared = prepare_site(pool, plan, &copy);
        REQUIRE(prepared.is_ok());
        std::vector<float> weights = dense;
        REQUIRE(prune_matrix(pool, plan, prepared.value(), weights.data(), rows, cols).is_ok());
        for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
          CAPTURE(dtype_name(dtype));
          const std::vector<float> back = unpack(pack(weights, dtype, rows, cols, values));
          int64_t changed = 0;
          for (size_t i = 0; i < back.size(); ++i) changed += back[i] != weights[i];
          CHECK(changed == 0);
        }
        if (values == Values::kInt4) {
          int64_t changed = 0;
          for (const float w : weights) changed += bf16_to_float(float_to_bf16(w)) != w;
          CHECK(changed == 0);
        }
      }
    }
  }
}

TEST_CASE("rounding with compensation leaves less error than rounding without, and given zeros stay") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t rows = 40;
  const int64_t cols = 192;
  SiteStatistics site = collect(pool, random, cols);
  const Matrix h = damped(site, 0.01);
  for (const double sparsity : {0.0, 0.5}) {
    std::vector<float> start = reference::normal_floats(random, rows * cols, 0.02f);
    const MethodPlan prune = MethodPlan::sparsegpt(Budget::unstructured(sparsity));
    const Result<PreparedSite> prepared = prepare_site(pool, prune, &site);
    REQUIRE(prepared.is_ok());
    REQUIRE(prune_matrix(pool, prune, prepared.value(), start.data(), rows, cols).is_ok());
    std::vector<float> compensated = start;
    std::vector<float> nearest = start;
    const MethodPlan plan = MethodPlan::quantize(Values::kInt4);
    REQUIRE(prune_matrix(pool, plan, prepared.value(), compensated.data(), rows, cols).is_ok());
    round_to_nearest(pool, Values::kInt4, nearest.data(), rows, cols);
    int64_t revived = 0;
    for (size_t i = 0; i < start.size(); ++i) revived += start[i] == 0 && (compensated[i] != 0 || nearest[i] != 0);
    CHECK(revived == 0);
    const double without = output_error(start, nearest, h);
    CHECK(output_error(start, compensated, h) < 0.8 * without);
    // The packer's own choice of scales, which are not bound to 5 bits, is the yardstick for ours.
    const std::vector<float> packed = unpack(pack(start, DType::kF32, rows, cols, Values::kInt4));
    double ours = 0;
    double its = 0;
    for (size_t i = 0; i < start.size(); ++i) {
      ours += std::pow(static_cast<double>(nearest[i] - start[i]), 2);
      its += std::pow(static_cast<double>(packed[i] - start[i]), 2);
    }
    CHECK(ours < 1.03 * its);
  }
}

TEST_CASE("rounding gives the same bytes for any number of threads") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  const int64_t rows = 250;
  const int64_t cols = 200;
  const std::vector<float> dense = reference::normal_floats(random, rows * cols, 0.02f);
  const std::vector<float> x = reference::correlated_inputs(random, 300, cols);
  std::vector<float> first;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    Result<SiteStatistics> site = SiteStatistics::create(cols, true);
    REQUIRE(site.is_ok());
    site.value().add(pool, x.data(), 300, cols, nullptr);
    MethodPlan plan = MethodPlan::sparsegpt(Budget::unstructured(0.5));
    plan.values = Values::kInt4;
    const Result<PreparedSite> prepared = prepare_site(pool, plan, &site.value());
    REQUIRE(prepared.is_ok());
    std::vector<float> weights = dense;
    REQUIRE(prune_matrix(pool, plan, prepared.value(), weights.data(), rows, cols).is_ok());
    if (first.empty()) first = weights;
    CHECK(weights == first);
  }
}

TEST_CASE("an expert without tokens is rounded to the nearest, and plans with other values are refused") {
  ThreadPool pool(1);
  PreparedSite blind;
  blind.fallback = true;
  std::vector<float> weights = {0.7f, 0.31f, -0.2f, 0.05f};
  MethodPlan plan = MethodPlan::sparsegpt(Budget::n_of_m(2, 4));
  plan.values = Values::kInt4;
  REQUIRE(prune_matrix(pool, plan, blind, weights.data(), 1, 4).is_ok());
  // Neighbouring scales of 5 bits are at most 1 / 16 apart.
  CHECK(weights[2] == 0);
  CHECK(weights[3] == 0);
  CHECK(weights[0] == doctest::Approx(0.7).epsilon(0.03));
  CHECK(weights[1] == doctest::Approx(0.31).epsilon(0.07));
  plan.values = Values::kBf16;
  CHECK(check_plan(plan).code() == Code::kUsage);
}
