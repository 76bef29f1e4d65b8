// What pruning computes of activations on a GPU, against float64 on the host.
#include <algorithm>

#include "gpu.h"
#include "kernels/cuda/calibration.h"
#include "prune/statistics.h"

using namespace espalier;
using namespace espalier::cuda;
using test::draw;
using test::floats;
using test::OnGpu;
using test::require;

namespace {

// Groups of rows that follow each other, some without any.
std::vector<GemmGroup> random_groups(int count) {
  std::vector<GemmGroup> groups(static_cast<size_t>(count));
  int rows = 0;
  for (GemmGroup& group : groups) {
    group.first_row = rows;
    group.rows = draw(0, 50);
    rows += group.rows;
  }
  return groups;
}

}  // namespace

TEST_CASE("floats become parts, with zeros behind them") {
  if (!test::has_gpu()) return;
  for (const int cols : {1, 32, 333}) {
    for (const int parts : {1, 2}) {
      const int rows = draw(1, 20);
      const int out_rows = rows + draw(0, 3);
      std::vector<float> source = floats(static_cast<size_t>(rows * cols));
      const OnGpu<float> source_gpu(source);
      const OnGpu<uint16_t> out(static_cast<size_t>(out_rows * parts * part_stride(cols)));
      require(split_rows({.rows = rows,
                          .cols = cols,
                          .source = source_gpu.get(),
                          .out_rows = out_rows,
                          .out = {out.get(), parts, part_stride(cols)}},
                         nullptr));
      source.resize(static_cast<size_t>(out_rows * cols), 0.0f);
      CHECK(out.host() == test::split_parts(source, out_rows, cols, parts));
    }
  }
}

TEST_CASE("SwiGLU as floats and as parts") {
  if (!test::has_gpu()) return;
  for (const int cols : {7, 96, 1500}) {
    const int rows = draw(1, 30);
    const auto size = static_cast<size_t>(rows * cols);
    const std::vector<float> gate = floats(size, 3);
    const std::vector<float> up = floats(size);
    const OnGpu<float> gate_gpu(gate);
    const OnGpu<float> up_gpu(up);
    const OnGpu<uint16_t> out(static_cast<size_t>(rows * kGemmParts * part_stride(cols)));
    require(gate_rows({.rows = rows,
                       .cols = cols,
                       .gate = gate_gpu.get(),
                       .up = up_gpu.get(),
                       .out = {out.get(), kGemmParts, part_stride(cols)}},
                      nullptr));
    std::vector<double> wanted;
    for (size_t i = 0; i < size; ++i) {
      wanted.push_back(static_cast<double>(gate[i]) / (1 + std::exp(-static_cast<double>(gate[i]))) *
                       static_cast<double>(up[i]));
    }
    const std::vector<float> found = gate_gpu.host();
    CHECK(test::relative_error(found, wanted) < 1e-6);
    CHECK(out.host() == test::split_parts(found, rows, cols, kGemmParts));
  }
}

TEST_CASE("sums of columns have the bits of float64 sums in the order of the rows") {
  if (!test::has_gpu()) return;
  constexpr int kExperts = 3;
  const int cols = draw(1, 400);
  std::vector<double> wanted(static_cast<size_t>(kExperts * cols), 0.0);
  const OnGpu<double> sums(wanted);
  for (int batch = 0; batch < 3; ++batch) {
    const std::vector<GemmGroup> groups = random_groups(kExperts);
    const int rows = groups.back().first_row + groups.back().rows;
    const std::vector<float> x = floats(static_cast<size_t>((rows + 1) * cols));
    const OnGpu<GemmGroup> groups_gpu(groups);
    const OnGpu<float> x_gpu(x);
    require(add_columns(
        {.groups = groups_gpu.get(), .group_count = kExperts, .x = x_gpu.get(), .cols = cols, .sums = sums.get()},
        nullptr));
    require(to_status(cudaDeviceSynchronize(), "add_columns"));
    for (int e = 0; e < kExperts; ++e) {
      const GemmGroup& group = groups[static_cast<size_t>(e)];
      for (int r = group.first_row; r < group.first_row + group.rows; ++r) {
        for (int j = 0; j < cols; ++j) {
          wanted[static_cast<size_t>(e * cols + j)] += static_cast<double>(x[static_cast<size_t>(r * cols + j)]);
        }
      }
    }
  }
  CHECK(sums.host() == wanted);
}

TEST_CASE("squared lengths have the bits of the CPU, however rows are cut into launches") {
  if (!test::has_gpu()) return;
  ThreadPool pool(2);
  for (const bool gated : {false, true}) {
    for (const bool indexed : {false, true}) {
      constexpr int kExperts = 3;
      const int cols = draw(1, 400);
      std::vector<SiteStatistics> wanted;
      for (int e = 0; e < kExperts; ++e) wanted.push_back(std::move(SiteStatistics::create(cols, false).value()));
      const OnGpu<double> sums(std::vector<double>(static_cast<size_t>(kExperts * cols), 0.0));
      for (int batch = 0; batch < 3; ++batch) {
        const std::vector<GemmGroup> groups = random_groups(kExperts);
        const int rows = groups.back().first_row + groups.back().rows;
        const int inputs = indexed ? 20 : std::max(rows, 1);
        const std::vector<float> x = floats(static_cast<size_t>(inputs * cols));
        const std::vector<float> gates = floats(static_cast<size_t>(rows + 1));
        std::vector<int32_t> from(static_cast<size_t>(rows + 1));
        for (int32_t& row : from) row = draw(0, inputs - 1);
        const OnGpu<GemmGroup> groups_gpu(groups);
        const OnGpu<float> x_gpu(x);
        const OnGpu<float> gates_gpu(gates);
        const OnGpu<int32_t> from_gpu(from);
        require(add_squares({.groups = groups_gpu.get(),
                             .group_count = kExperts,
                             .x = x_gpu.get(),
                             .rows = indexed ? from_gpu.get() : nullptr,
                             .gates = gated ? gates_gpu.get() : nullptr,
                             .cols = cols,
                             .sums = sums.get()},
                            nullptr));
        require(to_status(cudaDeviceSynchronize(), "add_squares"));
        for (size_t e = 0; e < kExperts; ++e) {
          for (int r = groups[e].first_row; r < groups[e].first_row + groups[e].rows; ++r) {
            const int row = indexed ? from[static_cast<size_t>(r)] : r;
            wanted[e].add(pool, x.data() + static_cast<size_t>(row * cols), 1, cols,
                          gated ? gates.data() + r : nullptr);
          }
        }
      }
      const std::vector<double> found = sums.host();
      for (size_t e = 0; e < kExperts; ++e) {
        const auto begin = found.begin() + static_cast<ptrdiff_t>(e) * cols;
        CHECK(std::vector<double>(begin, begin + cols) == wanted[e].squared_norms());
      }
    }
  }
}

TEST_CASE("rows become columns of parts, weighted by their gates") {
  if (!test::has_gpu()) return;
  const int cols = draw(1, 200);
  const int first = 3;
  const int rows = draw(1, 150);
  const std::vector<float> x = floats(static_cast<size_t>(50 * cols));
  const std::vector<float> gates = floats(static_cast<size_t>(first + rows));
  std::vector<int32_t> from(gates.size());
  for (int32_t& row : from) row = draw(0, 49);
  const OnGpu<float> x_gpu(x);
  const OnGpu<float> gates_gpu(gates);
  const OnGpu<int32_t> from_gpu(from);
  const OnGpu<uint16_t> out(static_cast<size_t>(cols * kGemmParts * part_stride(rows)));
  require(transpose_rows({.x = x_gpu.get(),
                          .from = from_gpu.get(),
                          .gates = gates_gpu.get(),
                          .first_row = first,
                          .rows = rows,
                          .cols = cols,
                          .out = {out.get(), kGemmParts, part_stride(rows)}},
                         nullptr));
  std::vector<float> wanted;
  for (int j = 0; j < cols; ++j) {
    for (int r = 0; r < rows; ++r) {
      const auto at = static_cast<size_t>(first + r);
      wanted.push_back(gates[at] * x[static_cast<size_t>(from[at] * cols + j)]);
    }
  }
  CHECK(out.host() == test::split_parts(wanted, cols, rows, kGemmParts));
}

TEST_CASE("sums of float arrays") {
  if (!test::has_gpu()) return;
  const std::vector<float> a = floats(1000);
  const std::vector<float> b = floats(1000);
  const OnGpu<float> a_gpu(a);
  const OnGpu<float> b_gpu(b);
  require(add_floats(a_gpu.get(), b_gpu.get(), 1000, nullptr));
  const std::vector<float> found = a_gpu.host();
  for (size_t i = 0; i < a.size(); ++i) CHECK(found[i] == a[i] + b[i]);
}
