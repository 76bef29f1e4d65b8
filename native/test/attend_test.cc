#include "engine/attend.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/dtype.h"
#include "kernel_sets.h"
#include "test_main.h"

using namespace espalier;

namespace {

constexpr KvType kTypes[] = {KvType::kF32, KvType::kBf16, KvType::kInt8};
const char* name_of(KvType type) { return type == KvType::kF32 ? "float32" : type == KvType::kBf16 ? "bf16" : "int8"; }

// Sequences with their keys and values, in scattered blocks of a cache that is NaN wherever nothing was written.
struct Scene {
  AttendShape shape;
  const CpuKernels* kernels;
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
      const auto at = static_cast<size_t>(p * scene.kv_floats() + static_cast<int64_t>(h) * dim);
      scene.kernels->write_kv[static_cast<size_t>(scene.cache.type())]({.key = scene.k[s].data() + at,
                                                                        .value = scene.v[s].data() + at,
                                                                        .head_dim = dim,
                                                                        .place = p % kKvBlock,
                                                                        .keys = scene.cache.keys(h) + block,
                                                                        .values = scene.cache.values(h) + block});
    }
  }
}

// The key or the value of a token and KV head, as its block holds it.
void read_stored(Scene& scene, size_t s, int64_t p, int head, bool key, std::vector<double>& out) {
  const int64_t dim = scene.shape.head_dim;
  const int64_t number = scene.batch.slices[s].blocks[static_cast<size_t>(p / kKvBlock)];
  const uint8_t* block =
      (key ? scene.cache.keys(head) : scene.cache.values(head)) + number * scene.cache.block_stride();
  const int64_t place = p % kKvBlock;
  const KvType type = scene.cache.type();
  float scale = 1;
  if (type == KvType::kInt8) std::memcpy(&scale, block + (dim + 3) / 4 * 64 + place * 4, 4);
  out.clear();
  for (int64_t d = 0; d < dim; ++d) {
    const int64_t at = key ? d * kKvBlock + place : place * dim + d;
    if (type == KvType::kInt8) {
      const int q = key ? block[d / 4 * 64 + place * 4 + d % 4] - 128 : static_cast<int8_t>(block[at]);
      out.push_back(static_cast<double>(scale) * q);
    } else {
      float value;
      if (type == KvType::kF32) std::memcpy(&value, block + at * 4, 4);
      if (type == KvType::kBf16) value = load_float(DType::kBF16, block, at);
      out.push_back(static_cast<double>(value));
    }
  }
}

Scene make_scene(std::mt19937& random, const CpuKernels* kernels, KvType type, const AttendShape& shape,
                 const std::vector<Length>& lengths) {
  Scene scene;
  scene.kernels = kernels;
  scene.shape = shape;
  int64_t blocks = 1;
  for (const Length& length : lengths) blocks += (length.position + length.count) / kKvBlock + 1;
  std::vector<int32_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  REQUIRE(scene.cache.allocate(blocks, shape.kv_heads, shape.head_dim, type));
  // A NaN of float32, of bf16 and of the scales of int8.
  std::memset(scene.cache.keys(0), 0xff, static_cast<size_t>(blocks * scene.cache.block_stride()));
  std::memset(scene.cache.values(0), 0xff, static_cast<size_t>(blocks * scene.cache.block_stride()));
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

std::vector<float> run(Scene& scene, int threads) {
  ThreadPool pool(threads);
  std::vector<float> out(scene.queries.size(), std::nanf(""));
  AttendLoop().run({pool, *scene.kernels}, scene.shape, scene.batch, scene.cache, scene.queries.data(), out.data());
  return out;
}

// One head of one token in float64, against what the kernels gave.
void check_row(Scene& scene, size_t s, int64_t token, int head, const float* out) {
  const AttendShape& shape = scene.shape;
  const Slice& slice = scene.batch.slices[s];
  const int64_t last = slice.position + token + 1;
  const int64_t first = shape.window > 0 ? std::max<int64_t>(0, last - shape.window) : 0;
  const int kv_head = head / (shape.heads / shape.kv_heads);
  const float* query = scene.queries.data() + (slice.first_row + token) * scene.row_floats() +
                       static_cast<int64_t>(head) * shape.head_dim;
  float longest = 0;
  for (int d = 0; d < shape.head_dim; ++d) longest = std::max(longest, std::abs(query[d]));
  std::vector<double> scores;
  std::vector<double> row;
  double magnitude = 0;  // the largest sum of absolute products: what rounding is relative to
  double rounding = 0;
  for (int64_t p = first; p < last; ++p) {
    double dot = 0;
    double absolute = 0;
    double keys = 0;
    read_stored(scene, s, p, kv_head, true, row);
    for (int d = 0; d < shape.head_dim; ++d) {
      const double key = row[static_cast<size_t>(d)];
      const double product = static_cast<double>(query[d]) * key;
      dot += product;
      absolute += std::abs(product);
      keys += std::abs(key);
    }
    scores.push_back(dot * static_cast<double>(shape.scale));
    magnitude = std::max(magnitude, absolute * std::abs(static_cast<double>(shape.scale)));
    // Half a step of a query as int8 keys see it.
    const double step = static_cast<double>(longest) / (127 * 254) * std::abs(static_cast<double>(shape.scale));
    if (scene.cache.type() == KvType::kInt8) rounding = std::max(rounding, 0.51 * step * keys);
  }
  const double maximum = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - maximum);
  std::vector<double> exact(static_cast<size_t>(shape.head_dim));
  std::vector<double> absolute(exact.size());
  for (int64_t p = first; p < last; ++p) {
    read_stored(scene, s, p, kv_head, false, row);
    const double share = scores[static_cast<size_t>(p - first)] / total;
    for (size_t d = 0; d < row.size(); ++d) {
      exact[d] += share * row[d];
      absolute[d] += share * std::abs(row[d]);
    }
  }
  for (size_t d = 0; d < row.size(); ++d) {
    const double error = std::abs(static_cast<double>(out[d]) - exact[d]);
    REQUIRE_MESSAGE(error <= (4e-6 + 4e-7 * magnitude + 2 * std::expm1(rounding)) * absolute[d],
                    "dimension " << d << ": " << out[d] << ", exact " << exact[d]);
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
    for (int round = 0; round < 45; ++round) {
      const KvType type = kTypes[round % 3];
      const AttendShape shape = random_shape(random);
      // A single token, a prompt, and a few tokens after a context.
      const std::vector<Length> lengths = {{between(random, 0, 2999), 1},
                                           {0, between(random, 1, 70)},
                                           {between(random, 1, 600), between(random, 2, 40)}};
      Scene scene = make_scene(random, kernels, type, shape, lengths);
      CAPTURE(name_of(type));
      CAPTURE(isa_name(kernels->isa));
      CAPTURE(shape.heads);
      CAPTURE(shape.kv_heads);
      CAPTURE(shape.head_dim);
      CAPTURE(shape.window);
      const std::vector<float> out = run(scene, 2);
      for (size_t s = 0; s < lengths.size(); ++s) {
        for (int sample = 0; sample < 6; ++sample) {
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
        for (const KvType type : kTypes) {
          Scene scene = make_scene(random, kernels, type, {6, 2, 32, 0.2f, window}, {{last - 1, 1}});
          CAPTURE(name_of(type));
          CAPTURE(window);
          CAPTURE(last);
          const std::vector<float> out = run(scene, 1);
          for (int head = 0; head < 6; ++head)
            check_row(scene, 0, 0, head, out.data() + static_cast<int64_t>(head) * 32);
        }
      }
    }
  }
}

TEST_CASE("attention has the same bits for 1, 2 and 5 threads, alone or in a batch, at once or token by token") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    for (int round = 0; round < 6; ++round) {
      const AttendShape shape = random_shape(random);
      const KvType type = kTypes[round % 3];
      CAPTURE(name_of(type));
      Scene scene = make_scene(random, kernels, type, shape,
                               {{between(random, 0, 1500), 1},
                                {between(random, 0, 300), between(random, 2, 90)},
                                {between(random, 0, 700), between(random, 1, 8)}});
      CAPTURE(isa_name(kernels->isa));
      CAPTURE(shape.heads);
      CAPTURE(shape.kv_heads);
      CAPTURE(shape.head_dim);
      CAPTURE(shape.window);
      const std::vector<float> all = run(scene, 1);
      for (const int threads : {2, 5}) {
        REQUIRE(same_bits(run(scene, threads).data(), all.data(), static_cast<int64_t>(all.size())));
      }
      const std::vector<Slice> slices = scene.batch.slices;
      const std::vector<float> queries = scene.queries;
      for (const Slice& slice : slices) {
        const int64_t begin = slice.first_row * scene.row_floats();
        const auto rows_of = [&](int64_t row, int64_t count) {
          scene.queries.assign(queries.begin() + row * scene.row_floats(),
                               queries.begin() + (row + count) * scene.row_floats());
          return run(scene, 2);
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
    for (int round = 0; round < 6; ++round) {
      const AttendShape shape = random_shape(random);
      const KvType type = kTypes[round % 3];
      CAPTURE(name_of(type));
      CAPTURE(isa_name(kernels->isa));
      const int count = between(random, 2, 80);
      Scene scene = make_scene(random, kernels, type, shape, {{between(random, 0, 300), count}});
      const std::vector<float> clean = run(scene, 2);
      const int64_t bad = between(random, 1, count - 1);
      const auto at = static_cast<size_t>((scene.batch.slices[0].position + bad) * scene.kv_floats());
      scene.k[0][at] = std::nanf("");
      scene.v[0][at] = std::numeric_limits<float>::infinity();
      scene.v[0][at + 1] = std::nanf("");
      write(scene, 0);
      const std::vector<float> dirty = run(scene, 2);
      CHECK(same_bits(clean.data(), dirty.data(), bad * scene.row_floats()));
      CHECK(std::isnan(dirty[static_cast<size_t>(bad * scene.row_floats())]));
    }
  }
}

TEST_CASE("the cache holds elements rounded to its type: bf16 to nearest even, int8 to half of max / 127") {
  std::mt19937 random(test::fresh_seed());
  for (const CpuKernels* kernels : test::kernel_sets()) {
    CAPTURE(isa_name(kernels->isa));
    for (const KvType type : kTypes) {
      for (int round = 0; round < 6; ++round) {
        AttendShape shape = random_shape(random);
        if (round == 0) shape.head_dim = 258;
        Scene scene = make_scene(random, kernels, type, shape, {{between(random, 0, 40), 1}});
        // A token of nothing, one of tiny numbers and one of huge ones.
        const float factor = round == 1 ? 0.0f : round == 2 ? 1e-30f : round == 3 ? 1e30f : 1.0f;
        for (float& k : scene.k[0]) k *= factor;
        write(scene, 0);
        CAPTURE(name_of(type));
        CAPTURE(shape.head_dim);
        std::vector<double> row;
        for (int64_t p = 0; p <= scene.batch.slices[0].position; ++p) {
          for (int h = 0; h < shape.kv_heads; ++h) {
            for (const bool key : {true, false}) {
              const float* x =
                  (key ? scene.k : scene.v)[0].data() + p * scene.kv_floats() + int64_t{h} * shape.head_dim;
              float largest = 0;
              for (int d = 0; d < shape.head_dim; ++d) largest = std::max(largest, std::abs(x[d]));
              read_stored(scene, 0, p, h, key, row);
              for (int d = 0; d < shape.head_dim; ++d) {
                const double found = row[static_cast<size_t>(d)];
                const auto exact = static_cast<double>(x[d]);
                if (type == KvType::kF32) REQUIRE(found == exact);
                if (type == KvType::kBf16) REQUIRE(found == static_cast<double>(bf16_to_float(float_to_bf16(x[d]))));
                if (type == KvType::kInt8)
                  REQUIRE(std::abs(found - exact) <= 0.50001 / 127 * static_cast<double>(largest));
              }
            }
          }
        }
      }
    }
  }
}
