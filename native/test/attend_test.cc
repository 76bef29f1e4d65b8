#include "engine/attend.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernel_sets.h"
#include "test_main.h"

using namespace espalier;

namespace {

// Sequences with their keys and values, in scattered blocks of a cache that is NaN wherever nothing was written.
struct Scene {
  AttendShape shape;
  Batch batch;
  std::vector<float> queries;            // [rows][heads][head_dim]
  std::vector<std::vector<float>> k, v;  // of each slice: [position + count][kv_heads][head_dim]
  KvLayer cache;

  int64_t row_floats() const { return static_cast<int64_t>(shape.heads) * shape.head_dim; }
  int64_t kv_floats() const { return static_cast<int64_t>(shape.kv_heads) * shape.head_dim; }
};

struct Length {
  int64_t position;
  int64_t count;
};

void write(Scene& scene, size_t s) {
  const Slice& slice = scene.batch.slices[s];
  const int dim = scene.shape.head_dim;
  for (int64_t p = 0; p < slice.position + slice.count; ++p) {
    for (int h = 0; h < scene.shape.kv_heads; ++h) {
      const int64_t block = slice.blocks[static_cast<size_t>(p / kKvBlock)] * scene.cache.block_stride();
      const int64_t place = p % kKvBlock;
      const auto at = static_cast<size_t>(p * scene.kv_floats() + static_cast<int64_t>(h) * dim);
      for (int d = 0; d < dim; ++d) {
        scene.cache.keys(h)[block + d * kKvBlock + place] = scene.k[s][at + static_cast<size_t>(d)];
        scene.cache.values(h)[block + place * dim + d] = scene.v[s][at + static_cast<size_t>(d)];
      }
    }
  }
}

Scene make_scene(std::mt19937& random, const AttendShape& shape, const std::vector<Length>& lengths) {
  Scene scene;
  scene.shape = shape;
  int64_t blocks = 1;
  for (const Length& length : lengths) blocks += (length.position + length.count) / kKvBlock + 1;
  std::vector<int32_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  REQUIRE(scene.cache.allocate(blocks, shape.kv_heads, shape.head_dim));
  std::fill_n(scene.cache.keys(0), blocks * scene.cache.block_stride(), std::nanf(""));
  std::fill_n(scene.cache.values(0), blocks * scene.cache.block_stride(), std::nanf(""));
  for (const Length& length : lengths) {
    Slice slice{scene.batch.rows, length.count, length.position, {}};
    const int64_t end = length.position + length.count;
    for (int64_t b = 0; b * kKvBlock < end; ++b) {
      slice.blocks.push_back(order.back());
      order.pop_back();
    }
    scene.batch.rows += length.count;
    scene.batch.slices.push_back(slice);
    scene.k.push_back(test::normal_floats(random, static_cast<size_t>(end * scene.kv_floats())));
    scene.v.push_back(test::normal_floats(random, static_cast<size_t>(end * scene.kv_floats())));
    write(scene, scene.k.size() - 1);
  }
  scene.queries = test::normal_floats(random, static_cast<size_t>(scene.batch.rows * scene.row_floats()));
  return scene;
}

std::vector<float> run(Scene& scene, const CpuKernels& kernels, int threads) {
  ThreadPool pool(threads);
  std::vector<float> out(scene.queries.size(), std::nanf(""));
  AttendLoop().run({pool, kernels}, scene.shape, scene.batch, scene.cache, scene.queries.data(), out.data());
  return out;
}

// One head of one token in float64, against what the kernels gave.
void check_row(const Scene& scene, size_t s, int64_t token, int head, const float* out) {
  const AttendShape& shape = scene.shape;
  const Slice& slice = scene.batch.slices[s];
  const int64_t last = slice.position + token + 1;
  const int64_t first = shape.window > 0 ? std::max<int64_t>(0, last - shape.window) : 0;
  const int kv_head = head / (shape.heads / shape.kv_heads);
  const float* query = scene.queries.data() + (slice.first_row + token) * scene.row_floats() +
                       static_cast<int64_t>(head) * shape.head_dim;
  const auto at = [&](int64_t p) { return p * scene.kv_floats() + static_cast<int64_t>(kv_head) * shape.head_dim; };
  std::vector<double> scores;
  double magnitude = 0;  // the largest sum of absolute products: what rounding is relative to
  for (int64_t p = first; p < last; ++p) {
    double dot = 0;
    double absolute = 0;
    for (int d = 0; d < shape.head_dim; ++d) {
      const double product =
          static_cast<double>(query[d]) * static_cast<double>(scene.k[s][static_cast<size_t>(at(p) + d)]);
      dot += product;
      absolute += std::abs(product);
    }
    scores.push_back(dot * static_cast<double>(shape.scale));
    magnitude = std::max(magnitude, absolute * std::abs(static_cast<double>(shape.scale)));
  }
  const double maximum = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - maximum);
  for (int d = 0; d < shape.head_dim; ++d) {
    double exact = 0;
    double absolute = 0;
    for (int64_t p = first; p < last; ++p) {
      const double value = static_cast<double>(scene.v[s][static_cast<size_t>(at(p) + d)]);
      exact += scores[static_cast<size_t>(p - first)] / total * value;
      absolute += scores[static_cast<size_t>(p - first)] / total * std::abs(value);
    }
    const double error = std::abs(static_cast<double>(out[d]) - exact);
    REQUIRE_MESSAGE(error <= (4e-6 + 4e-7 * magnitude) * absolute,
                    "dimension " << d << ": " << out[d] << ", exact " << exact);
  }
}

bool same_bits(const float* a, const float* b, int64_t n) { return std::memcmp(a, b, static_cast<size_t>(n) * 4) == 0; }

int between(std::mt19937& random, int low, int high) { return std::uniform_int_distribution(low, high)(random); }

AttendShape random_shape(std::mt19937& random) {
  constexpr int kDims[] = {2, 8, 32, 34, 64, 80, 96, 112, 128, 160, 192, 256};
  AttendShape shape;
  shape.kv_heads = between(random, 1, 2);
  shape.heads = shape.kv_heads * between(random, 1, 8);
  shape.head_dim = kDims[between(random, 0, static_cast<int>(std::size(kDims)) - 1)];
  // Now and then so large that all the weight is on one key.
  shape.scale = (between(random, 0, 3) == 0 ? 8.0f : 1.0f) / std::sqrt(static_cast<float>(shape.head_dim));
  shape.window = between(random, 0, 1) == 0 ? 0 : between(random, 1, 700);
  return shape;
}

}  // namespace

TEST_CASE("attention agrees with float64 whatever the shape, the window and the context") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (int round = 0; round < 30; ++round) {
      const AttendShape shape = random_shape(random);
      // A single token, a prompt, and a few tokens after a context.
      const std::vector<Length> lengths = {{between(random, 0, 2999), 1},
                                           {0, between(random, 1, 70)},
                                           {between(random, 1, 600), between(random, 2, 40)}};
      Scene scene = make_scene(random, shape, lengths);
      CAPTURE(isa_name(kernels->isa));
      CAPTURE(shape.heads);
      CAPTURE(shape.kv_heads);
      CAPTURE(shape.head_dim);
      CAPTURE(shape.window);
      const std::vector<float> out = run(scene, *kernels, 2);
      for (size_t s = 0; s < lengths.size(); ++s) {
        for (int sample = 0; sample < 12; ++sample) {
          const int64_t token = between(random, 0, static_cast<int>(lengths[s].count) - 1);
          const int head = between(random, 0, shape.heads - 1);
          CAPTURE(lengths[s].position);
          CAPTURE(token);
          CAPTURE(head);
          check_row(scene, s, token, head,
                    out.data() + (scene.batch.slices[s].first_row + token) * scene.row_floats() +
                        static_cast<int64_t>(head) * shape.head_dim);
        }
      }
    }
  }
}

TEST_CASE("attention at the edges of blocks and chunks agrees with float64") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (const int64_t window : {0, 1, 16, 17, 256}) {
      for (const int64_t last : {1, 15, 16, 17, 32, 255, 256, 257, 272, 512, 513}) {
        Scene scene = make_scene(random, {6, 2, 32, 0.2f, window}, {{last - 1, 1}});
        CAPTURE(window);
        CAPTURE(last);
        const std::vector<float> out = run(scene, *kernels, 1);
        for (int head = 0; head < 6; ++head) check_row(scene, 0, 0, head, out.data() + static_cast<int64_t>(head) * 32);
      }
    }
  }
}

TEST_CASE("attention has the same bits for 1, 2 and 5 threads, alone or in a batch, at once or token by token") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (int round = 0; round < 8; ++round) {
      const AttendShape shape = random_shape(random);
      Scene scene = make_scene(random, shape,
                               {{between(random, 0, 1500), 1},
                                {between(random, 0, 300), between(random, 2, 90)},
                                {between(random, 0, 700), between(random, 1, 8)}});
      CAPTURE(isa_name(kernels->isa));
      CAPTURE(shape.heads);
      CAPTURE(shape.kv_heads);
      CAPTURE(shape.head_dim);
      CAPTURE(shape.window);
      const std::vector<float> all = run(scene, *kernels, 1);
      for (const int threads : {2, 5}) {
        REQUIRE(same_bits(run(scene, *kernels, threads).data(), all.data(), static_cast<int64_t>(all.size())));
      }
      const std::vector<Slice> slices = scene.batch.slices;
      const std::vector<float> queries = scene.queries;
      for (const Slice& slice : slices) {
        const int64_t begin = slice.first_row * scene.row_floats();
        const auto rows_of = [&](int64_t row, int64_t count) {
          scene.queries.assign(queries.begin() + row * scene.row_floats(),
                               queries.begin() + (row + count) * scene.row_floats());
          return run(scene, *kernels, 2);
        };
        scene.batch = {slice.count, {slice}};
        scene.batch.slices[0].first_row = 0;
        REQUIRE(same_bits(rows_of(slice.first_row, slice.count).data(), all.data() + begin,
                          slice.count * scene.row_floats()));
        for (int64_t token = 0; token < slice.count; token += 7) {
          scene.batch = {1, {{0, 1, slice.position + token, slice.blocks}}};
          REQUIRE(same_bits(rows_of(slice.first_row + token, 1).data(), all.data() + begin + token * scene.row_floats(),
                            scene.row_floats()));
        }
      }
    }
  }
}

TEST_CASE("a token's attention has the same bits whatever comes after it, NaN and infinities too") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (int round = 0; round < 10; ++round) {
      const AttendShape shape = random_shape(random);
      const int count = between(random, 2, 80);
      Scene scene = make_scene(random, shape, {{between(random, 0, 300), count}});
      const std::vector<float> clean = run(scene, *kernels, 2);
      const int64_t bad = between(random, 1, count - 1);
      const auto at = static_cast<size_t>((scene.batch.slices[0].position + bad) * scene.kv_floats());
      scene.k[0][at] = std::nanf("");
      scene.v[0][at] = std::numeric_limits<float>::infinity();
      scene.v[0][at + 1] = std::nanf("");
      write(scene, 0);
      const std::vector<float> dirty = run(scene, *kernels, 2);
      CHECK(same_bits(clean.data(), dirty.data(), bad * scene.row_floats()));
      CHECK(std::isnan(dirty[static_cast<size_t>(bad * scene.row_floats())]));
    }
  }
}
