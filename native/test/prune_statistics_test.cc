#include <doctest/doctest.h>

#include "prune/hessian.h"
#include "prune/statistics.h"
#include "prune_reference.h"

using namespace espalier;

namespace {

struct Inputs {
  int64_t tokens;
  int64_t width;
  int64_t stride;
  std::vector<float> x;     // [tokens, stride]
  std::vector<float> gate;  // [tokens], or empty

  Inputs(std::mt19937_64& random, int64_t rows, int64_t columns, bool gated)
      : tokens(rows), width(columns), stride(columns + 3), x(reference::normal_floats(random, rows * (columns + 3))) {
    std::uniform_real_distribution<float> weight(0, 1);
    for (int64_t t = 0; gated && t < rows; ++t) gate.push_back(weight(random));
  }

  const float* row(int64_t t) const { return x.data() + t * stride; }
  const float* weight(int64_t t) const { return gate.empty() ? nullptr : gate.data() + t; }
  double value(int64_t t, int64_t j) const {
    return (gate.empty() ? 1.0 : static_cast<double>(*weight(t))) * static_cast<double>(row(t)[j]);
  }
};

SiteStatistics collect(ThreadPool& pool, const Inputs& inputs, int64_t rows_per_call) {
  Result<SiteStatistics> site = SiteStatistics::create(inputs.width, true);
  REQUIRE(site.is_ok());
  for (int64_t t = 0; t < inputs.tokens; t += rows_per_call) {
    const int64_t rows = std::min(rows_per_call, inputs.tokens - t);
    site.value().add(pool, inputs.row(t), rows, inputs.stride, inputs.weight(t));
  }
  site.value().finish(pool);
  return std::move(site.value());
}

// The largest error of a Gram entry, as a fraction of the error that is promised.
double worst_gram_error(const SiteStatistics& site, const Inputs& inputs) {
  const double chunks = static_cast<double>(inputs.tokens) / static_cast<double>(SiteStatistics::kChunk);
  const double promise = (static_cast<double>(SiteStatistics::kChunk) + chunks + 4) * std::exp2(-24);
  double worst = 0;
  for (int64_t i = 0; i < inputs.width; ++i) {
    for (int64_t j = i; j < inputs.width; ++j) {
      double sum = 0;
      double size = 0;
      for (int64_t t = 0; t < inputs.tokens; ++t) {
        sum += inputs.value(t, i) * inputs.value(t, j);
        size += std::fabs(inputs.value(t, i) * inputs.value(t, j));
      }
      const double error = std::fabs(static_cast<double>(site.gram(i, j)) - sum);
      if (std::isnan(error)) return error;
      worst = std::max(worst, error / (promise * size));
    }
  }
  return worst;
}

std::vector<float> upper_triangle(const SiteStatistics& site) {
  std::vector<float> out;
  for (int64_t i = 0; i < site.width(); ++i) {
    for (int64_t j = i; j < site.width(); ++j) out.push_back(site.gram(i, j));
  }
  return out;
}

}  // namespace

TEST_CASE("norms and Gram matrix equal float64 sums within the promised error") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  for (const bool gated : {false, true}) {
    for (const int64_t width : {1, 95, 96, 97, 200}) {
      for (const int64_t tokens : {1, 255, 256, 700}) {
        CAPTURE(gated);
        CAPTURE(width);
        CAPTURE(tokens);
        const Inputs inputs(random, tokens, width, gated);
        const SiteStatistics site = collect(pool, inputs, 130);
        CHECK(site.tokens() == tokens);
        for (int64_t j = 0; j < width; ++j) {
          double sum = 0;
          for (int64_t t = 0; t < tokens; ++t) sum += inputs.value(t, j) * inputs.value(t, j);
          CHECK(site.squared_norms()[static_cast<size_t>(j)] == doctest::Approx(sum).epsilon(1e-12));
        }
        CHECK(worst_gram_error(site, inputs) <= 1);
      }
    }
  }
}

TEST_CASE("statistics have the same bytes for any number of threads and any split into calls") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  const Inputs inputs(random, 700, 200, true);
  ThreadPool one(1);
  const SiteStatistics expected = collect(one, inputs, 700);
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    for (const int64_t rows_per_call : {1, 17, 256, 300, 700}) {
      CAPTURE(threads);
      CAPTURE(rows_per_call);
      const SiteStatistics site = collect(pool, inputs, rows_per_call);
      CHECK(site.squared_norms() == expected.squared_norms());
      CHECK(upper_triangle(site) == upper_triangle(expected));
    }
  }
}

TEST_CASE("another order of the tokens changes the Gram matrix only within the promised error") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const Inputs inputs(random, 600, 120, true);
  std::vector<int64_t> order(600);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  Inputs shuffled = inputs;
  for (size_t t = 0; t < order.size(); ++t) {
    std::copy(inputs.row(order[t]), inputs.row(order[t]) + inputs.stride,
              shuffled.x.begin() + static_cast<int64_t>(t) * inputs.stride);
    shuffled.gate[t] = inputs.gate[static_cast<size_t>(order[t])];
  }
  const SiteStatistics site = collect(pool, shuffled, 600);
  CHECK(worst_gram_error(site, inputs) <= 1);
}

TEST_CASE("sums that were made elsewhere are taken as they are") {
  std::mt19937_64 random(reference::fresh_seed());
  ThreadPool pool(2);
  for (const int64_t width : {1, 95, 96, 300}) {
    std::vector<double> squares;
    for (const float value : reference::normal_floats(random, width)) squares.push_back(static_cast<double>(value));
    const std::vector<float> gram = reference::normal_floats(random, width * width);
    const Result<SiteStatistics> site = SiteStatistics::of_sums(pool, 17, squares, gram.data());
    REQUIRE(site.is_ok());
    CHECK(site.value().tokens() == 17);
    CHECK(site.value().squared_norms() == squares);
    bool same = true;
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = i; j < width; ++j) {
        same = same && site.value().gram(i, j) == gram[static_cast<size_t>(i * width + j)];
      }
    }
    CHECK(same);
    CHECK(!SiteStatistics::of_sums(pool, 17, squares, nullptr).value().has_gram());
  }
}

TEST_CASE("a site without a Gram matrix keeps the norms, and one without tokens is zero") {
  ThreadPool pool(1);
  Result<SiteStatistics> site = SiteStatistics::create(3, false);
  REQUIRE(site.is_ok());
  CHECK_FALSE(site.value().has_gram());
  CHECK(site.value().squared_norms() == std::vector<double>{0, 0, 0});
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const std::vector<float> gate = {0.5f, 2.0f};
  site.value().add(pool, x.data(), 2, 3, gate.data());
  site.value().finish(pool);
  CHECK(site.value().tokens() == 2);
  CHECK(site.value().squared_norms() == std::vector<double>{64.25, 101, 146.25});
}

TEST_CASE("an expert has one site of its input's width and one of its inner width") {
  const Result<ExpertStatistics> expert = ExpertStatistics::create(5, 7, true);
  REQUIRE(expert.is_ok());
  CHECK(expert.value().input.width() == 5);
  CHECK(expert.value().activation.width() == 7);
  CHECK(expert.value().activation.has_gram());
  CHECK(ExpertStatistics::create(0, 7, true).status().code() == Code::kUsage);
}

TEST_CASE("statistics of two experts merge into those of all their tokens") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const Inputs first(random, 300, 130, true);
  const Inputs second(random, 70, 130, true);
  SiteStatistics merged = collect(pool, first, 300);
  SiteStatistics other = collect(pool, second, 9);
  merged.merge(pool, other);
  CHECK(merged.tokens() == 370);
  double worst = 0;
  for (int64_t i = 0; i < 130; ++i) {
    for (int64_t j = i; j < 130; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < 300; ++t) sum += first.value(t, i) * first.value(t, j);
      for (int64_t t = 0; t < 70; ++t) sum += second.value(t, i) * second.value(t, j);
      worst = std::max(worst, std::fabs(sum - static_cast<double>(merged.gram(i, j))));
      if (i == j) CHECK(merged.squared_norms()[static_cast<size_t>(i)] == doctest::Approx(sum).epsilon(1e-12));
    }
  }
  CHECK(worst < 1e-3);
}

TEST_CASE("a Gram matrix of few tokens is shrunk towards the pooled one, or its own diagonal, and keeps its trace") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t n = 40;
  const SiteStatistics own = collect(pool, Inputs(random, 15, n, false), 15);
  const SiteStatistics pooled = collect(pool, Inputs(random, 500, n, true), 500);
  const auto trace_of = [&](const SiteStatistics& site) {
    double trace = 0;
    for (int64_t j = 0; j < n; ++j) trace += static_cast<double>(site.gram(j, j));
    return trace;
  };
  const double share = 2.0 * 40 / (2.0 * 40 + 15);
  const Hessian plain(own, {});
  const Hessian towards_layer(own, {2, &pooled});
  const Hessian towards_diagonal(own, {2, nullptr});
  CHECK(plain.scale().shrunk == 0);
  CHECK(towards_layer.scale().shrunk == doctest::Approx(share));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      const double mine = static_cast<double>(own.gram(i, j)) * 40 / trace_of(own);
      const double layers = static_cast<double>(pooled.gram(i, j)) * 40 / trace_of(pooled);
      CHECK(plain.at(i, j) == doctest::Approx(mine));
      CHECK(towards_layer.at(i, j) == doctest::Approx((1 - share) * mine + share * layers));
      CHECK(towards_diagonal.at(i, j) == doctest::Approx(i == j ? mine : (1 - share) * mine));
    }
  }
}

TEST_CASE("statistics with their columns permuted are those of inputs that came permuted, bit for bit") {
  const uint64_t seed = reference::fresh_seed();
  MESSAGE("seed " << seed);
  std::mt19937_64 random(seed);
  ThreadPool pool(2);
  const int64_t width = 230;
  const int64_t tokens = 300;
  const std::vector<float> x = reference::normal_floats(random, tokens * width);
  std::vector<int32_t> order(static_cast<size_t>(width));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  std::vector<float> moved(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t row = i - i % order.size();
    moved[i] = x[row + static_cast<size_t>(order[i % order.size()])];
  }
  for (const bool gram : {false, true}) {
    SiteStatistics found = std::move(SiteStatistics::create(width, gram).value());
    SiteStatistics wanted = std::move(SiteStatistics::create(width, gram).value());
    found.add(pool, x.data(), tokens, width, nullptr);
    wanted.add(pool, moved.data(), tokens, width, nullptr);
    wanted.finish(pool);
    REQUIRE(found.permute(pool, order).is_ok());
    CHECK(found.squared_norms() == wanted.squared_norms());
    int64_t wrong = 0;
    for (int64_t i = 0; gram && i < width; ++i) {
      for (int64_t j = i; j < width; ++j) wrong += found.gram(i, j) != wanted.gram(i, j);
    }
    CHECK(wrong == 0);
  }
}
