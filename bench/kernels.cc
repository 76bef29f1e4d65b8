// Decode products (one token) of every format against the read bandwidth of the machine, measured in the same run on as
// many bytes. Built with -DESPALIER_BENCH=ON; run build/kernels_bench [dense gigabytes = 1.5] [columns = 4096] [threads
// = 0].
//
// A format's time is compared with an ideal dense bf16 product: its bytes at the measured ceiling.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "core/read_ceiling.h"
#include "engine/linear.h"
#include "sparse/random_matrix.h"

using namespace espalier;

namespace {

constexpr int kRounds = 15;

double seconds(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median_seconds(const std::function<void()>& run) {
  run();
  std::vector<double> times(kRounds);
  for (double& time : times) time = seconds(run);
  std::sort(times.begin(), times.end());
  return times[kRounds / 2];
}

// The value of a result; ends the program where there is none.
template <class T>
T need(Result<T> result) {
  if (!result.is_ok()) {
    std::fprintf(stderr, "%s\n", result.status().message().c_str());
    std::exit(1);
  }
  return std::move(result.value());
}

}  // namespace

int main(int argc, char** argv) {
  const double gigabytes = argc > 1 ? std::atof(argv[1]) : 1.5;
  const int64_t cols = argc > 2 ? std::atoll(argv[2]) : 4096;
  const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(argc > 3 ? std::atoi(argv[3]) : 0);
  const int64_t rows = static_cast<int64_t>(gigabytes * 1e9 / 2) / cols / kTileRows * kTileRows;
  const Compute compute{*pool, cpu_kernels()};
  std::printf("%s, %s, %d threads, %lld x %lld\n", cpu_features().model.c_str(), isa_name(compute.kernels.isa),
              pool->size(), static_cast<long long>(rows), static_cast<long long>(cols));
  std::printf("%-12s %8s %8s %9s %10s %9s %22s\n", "format", "bits/w", "ms", "GB/s", "ceiling", "of it",
              "x ideal dense bf16");
  const std::vector<float> x(static_cast<size_t>(cols), 0.5f);
  std::vector<float> y(static_cast<size_t>(rows));
  for (const Values values : {Values::kBf16, Values::kInt8, Values::kInt4}) {
    for (const Format format : {Format{Storage::kDense, values}, Format{Storage::kBitmap, values},
                                Format{Storage::kNm, values, 2, 4}, Format{Storage::kNm, values, 32, 64}}) {
      // Balanced n of 64 shows the int4 layout; with wider values it is what 2:4 is.
      if (!compute.kernels.takes(format) || (format.m == kGroup && values != Values::kInt4)) continue;
      Linear linear;
      linear.weights = need(random_matrix(*pool, format, rows, cols, 0.5, 7));
      const int64_t bytes = linear.weights.bytes();
      const Product product{&linear, x.data(), cols, 1, y.data(), rows};
      const double before = need(read_ceiling(*pool, bytes));
      const double time = median_seconds([&] { multiply(compute, std::span(&product, 1)); });
      const double ceiling = std::max(before, need(read_ceiling(*pool, bytes)));
      const double rate = static_cast<double>(bytes) / time;
      const double ideal = static_cast<double>(rows * cols * 2) / ceiling;
      std::printf("%-12s %8.2f %8.2f %9.1f %10.1f %8.0f%% %21.2f\n", format.name().c_str(),
                  static_cast<double>(bytes) * 8 / static_cast<double>(rows * cols), time * 1e3, rate / 1e9,
                  ceiling / 1e9, 100 * rate / ceiling, ideal / time);
      std::fflush(stdout);
    }
  }
}
