// Attention over a paged cache on a GPU, against float64 on the host.
#include <algorithm>
#include <numeric>

#include "gpu.h"
#include "kernels/cuda/attention.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::OnGpu;
using test::require;

namespace {

struct AttentionCase {
  int heads;
  int kv_heads;
  int head_dim;
  int window;
  bool bf16;
  bool whole_norm;
};

// Heads of one row as float64: bias, norm, clamp, rotation.
std::vector<double> prepared(const std::vector<float>& source, size_t first, int heads, const AttentionCase& of,
                             const std::vector<float>& bias, size_t bias_first, const std::vector<float>& norm,
                             bool is_whole, float clip, const float* cosines, const float* sines) {
  const auto dim = static_cast<size_t>(of.head_dim);
  const size_t width = static_cast<size_t>(heads) * dim;
  std::vector<double> out(width);
  for (size_t i = 0; i < width; ++i) {
    out[i] = static_cast<double>(source[first + i]) + static_cast<double>(bias[bias_first + i]);
  }
  const size_t part = is_whole ? width : dim;
  for (size_t begin = 0; begin < width && !norm.empty(); begin += part) {
    double squares = 0;
    for (size_t i = begin; i < begin + part; ++i) squares += out[i] * out[i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(part) + 1e-6);
    for (size_t i = begin; i < begin + part; ++i) out[i] *= scale * static_cast<double>(norm[i - begin]);
  }
  for (double& value : out) value = std::clamp(value, -static_cast<double>(clip), static_cast<double>(clip));
  if (cosines == nullptr) return out;
  std::vector<double> rotated(width);
  const size_t half = dim / 2;
  for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
    for (size_t i = 0; i < half; ++i) {
      const double a = out[h * dim + i];
      const double b = out[h * dim + half + i];
      rotated[h * dim + i] = a * static_cast<double>(cosines[i]) - b * static_cast<double>(sines[i]);
      rotated[h * dim + half + i] = b * static_cast<double>(cosines[i]) + a * static_cast<double>(sines[i]);
    }
  }
  return rotated;
}

}  // namespace

TEST_CASE("heads into a paged cache, and attention over it") {
  if (!test::has_gpu()) return;
  const AttentionCase cases[] = {
      {4, 2, 32, 0, false, false},   {4, 4, 16, 8, false, true},     {6, 2, 24, 0, false, false},
      {8, 1, 128, 0, true, false},   {32, 2, 64, 200, false, false}, {2, 1, 256, 0, false, true},
      {16, 4, 128, 0, false, false}, {12, 2, 128, 0, false, false},  {64, 1, 64, 0, false, false}};
  for (const AttentionCase& of : test::some_of(cases, 1)) {
    CAPTURE(of.heads);
    CAPTURE(of.kv_heads);
    CAPTURE(of.head_dim);
    CAPTURE(of.window);
    // Two sequences of different lengths, whose blocks are scattered.
    const std::vector<int> lengths = {draw(129, test::is_emulated() ? 140 : 400),
                                      draw(1, test::is_emulated() ? 10 : 60)};
    const int rows = lengths[0] + lengths[1];
    const auto dim = static_cast<size_t>(of.head_dim);
    const size_t width = static_cast<size_t>(of.heads + 2 * of.kv_heads) * dim;
    const size_t q_width = static_cast<size_t>(of.heads) * dim;
    const size_t kv_width = static_cast<size_t>(of.kv_heads) * dim;
    const size_t half = dim / 2;
    const std::vector<float> source = floats(static_cast<size_t>(rows) * width, 2);
    const std::vector<float> bias = floats(width, 0.5f);
    const std::vector<float> q_norm = floats(of.whole_norm ? q_width : dim);
    const std::vector<float> k_norm = floats(of.whole_norm ? kv_width : dim);
    const std::vector<float> cosines = floats(static_cast<size_t>(rows) * half);
    const std::vector<float> sines = floats(static_cast<size_t>(rows) * half);
    constexpr float kClip = 2.5f;
    const float scale = 1.0f / std::sqrt(static_cast<float>(of.head_dim));

    std::vector<int32_t> positions;
    std::vector<int32_t> tables;
    std::vector<int32_t> blocks(static_cast<size_t>(lengths[0] / kKvTokens + lengths[1] / kKvTokens + 2));
    std::iota(blocks.begin(), blocks.end(), 3);
    std::shuffle(blocks.begin(), blocks.end(), test::generator());
    for (int s = 0; s < 2; ++s) {
      for (int p = 0; p < lengths[static_cast<size_t>(s)]; ++p) {
        positions.push_back(p);
        tables.push_back(s == 0 ? 0 : lengths[0] / kKvTokens + 1);
      }
    }
    const OnGpu<int32_t> positions_gpu(positions);
    const OnGpu<int32_t> tables_gpu(tables);
    const OnGpu<int32_t> blocks_gpu(blocks);
    const OnGpu<float> source_gpu(source);
    const OnGpu<float> bias_gpu(bias);
    const OnGpu<float> q_norm_gpu(q_norm);
    const OnGpu<float> k_norm_gpu(k_norm);
    const OnGpu<float> cosines_gpu(cosines);
    const OnGpu<float> sines_gpu(sines);
    const OnGpu<float> queries(static_cast<size_t>(rows) * q_width);
    const size_t cache_size = (blocks.size() + 3) * kKvTokens * kv_width;
    const OnGpu<float> keys(cache_size);
    const OnGpu<float> values(cache_size);
    const KvCache cache{keys.get(), values.get(), of.bf16};
    const HeadShape shape{of.heads, of.kv_heads, of.head_dim};
    const RowPlaces places{rows, positions_gpu.get(), tables_gpu.get(), blocks_gpu.get()};
    require(prepare_heads({.places = places,
                           .shape = shape,
                           .source = source_gpu.get(),
                           .bias = bias_gpu.get(),
                           .q_norm = q_norm_gpu.get(),
                           .k_norm = k_norm_gpu.get(),
                           .q_norm_whole = of.whole_norm,
                           .k_norm_whole = of.whole_norm,
                           .epsilon = 1e-6f,
                           .clip = kClip,
                           .cosines = cosines_gpu.get(),
                           .sines = sines_gpu.get(),
                           .queries = queries.get(),
                           .cache = cache},
                          nullptr));

    std::vector<std::vector<double>> q;
    std::vector<std::vector<double>> k;
    std::vector<std::vector<double>> v;
    std::vector<double> wanted_queries;
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      const float* cosine = cosines.data() + row * half;
      const float* sine = sines.data() + row * half;
      const size_t first = row * width;
      q.push_back(prepared(source, first, of.heads, of, bias, 0, q_norm, of.whole_norm, kClip, cosine, sine));
      k.push_back(prepared(source, first + q_width, of.kv_heads, of, bias, q_width, k_norm, of.whole_norm, kClip,
                           cosine, sine));
      v.push_back(prepared(source, first + q_width + kv_width, of.kv_heads, of, bias, q_width + kv_width, {}, false,
                           kClip, nullptr, nullptr));
      wanted_queries.insert(wanted_queries.end(), q.back().begin(), q.back().end());
    }
    CHECK(test::relative_error(queries.host(), wanted_queries) < 1e-6);

    std::vector<double> wanted;
    for (int row = 0; row < rows; ++row) {
      const int start = row < lengths[0] ? 0 : lengths[0];
      const int first = of.window > 0 ? std::max(start, row - of.window + 1) : start;
      for (int h = 0; h < of.heads; ++h) {
        const size_t kv = static_cast<size_t>(h / (of.heads / of.kv_heads)) * dim;
        std::vector<double> weights;
        double total = 0;
        for (int key = first; key <= row; ++key) {
          double dot = 0;
          for (size_t d = 0; d < dim; ++d) {
            dot += q[static_cast<size_t>(row)][static_cast<size_t>(h) * dim + d] * k[static_cast<size_t>(key)][kv + d];
          }
          weights.push_back(std::exp(dot * static_cast<double>(scale)));
          total += weights.back();
        }
        for (size_t d = 0; d < dim; ++d) {
          double sum = 0;
          for (int key = first; key <= row; ++key) {
            sum += weights[static_cast<size_t>(key - first)] * v[static_cast<size_t>(key)][kv + d];
          }
          wanted.push_back(sum / total);
        }
      }
    }
    const int stride = part_stride(static_cast<int64_t>(q_width));
    const int chunks = (lengths[0] + kAttendChunk - 1) / kAttendChunk;
    const OnGpu<float> partials(static_cast<size_t>(attend_partial_floats(shape, rows, chunks + 1)));
    const std::pair<int, int> cuts[] = {{1, 1}, {chunks, 1}, {chunks + 1, 1}, {chunks / 2 + 1, 2}};
    for (const auto& [splits, of_each] : test::some_of(cuts, 1)) {
      CAPTURE(splits);
      CAPTURE(of_each);
      const OnGpu<uint16_t> out(static_cast<size_t>(rows) * 2 * static_cast<size_t>(stride));
      require(attend({.places = places,
                      .shape = shape,
                      .scale = scale,
                      .window = of.window,
                      .cache = cache,
                      .queries = queries.get(),
                      .out = {out.get(), 2, stride},
                      .splits = splits,
                      .split_chunks = of_each,
                      .partials = partials.get()},
                     nullptr));
      const std::vector<double> found = test::join_parts(out.host(), rows, static_cast<int64_t>(q_width), 2);
      CHECK(test::relative_error(found, wanted) < (of.bf16 ? 2e-2 : 1e-5));
    }

    // The same rows as runs, the second sequence and the end of the first in runs of any length.
    std::vector<int32_t> firsts;
    std::vector<int32_t> counts;
    for (int first = 0; first < rows; first += counts.back()) {
      const int end = first < lengths[0] ? lengths[0] : rows;
      firsts.push_back(first);
      counts.push_back(std::min(end - first, first < 64 ? kMostRun : draw(1, kMostRun)));
    }
    const OnGpu<int32_t> firsts_gpu(firsts);
    const OnGpu<int32_t> counts_gpu(counts);
    const OnGpu<uint16_t> out(static_cast<size_t>(rows) * 2 * static_cast<size_t>(stride));
    AttendRunsTask task;
    task.rows = {.places = places,
                 .shape = shape,
                 .scale = scale,
                 .window = of.window,
                 .cache = cache,
                 .queries = queries.get(),
                 .out = {out.get(), 2, stride}};
    task.runs = static_cast<int>(firsts.size());
    task.firsts = firsts_gpu.get();
    task.counts = counts_gpu.get();
    require(attend_runs(task, nullptr));
    const std::vector<double> found = test::join_parts(out.host(), rows, static_cast<int64_t>(q_width), 2);
    const double error = test::relative_error(found, wanted);
    CAPTURE(error);
    CHECK(error < (of.bf16 ? 2e-2 : 1e-5));
  }
}
