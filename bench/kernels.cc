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
#include <random>
#include <string>

#include "engine/linear.h"

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

typedef uint64_t Wide __attribute__((vector_size(64)));

// Bytes a second of all threads reading a buffer of this size once, with the prefetch that the kernels use.
double read_ceiling(ThreadPool& pool, int64_t bytes) {
  AlignedBuffer<uint8_t> buffer(static_cast<size_t>(bytes));
  std::atomic<uint64_t> sink{0};
  const int64_t vectors = bytes / 64;
  return static_cast<double>(vectors * 64) / median_seconds([&] {
           pool.parallel_for(vectors, 16384, [&](int64_t begin, int64_t end) {
             Wide sums[4] = {};
             const auto* at = reinterpret_cast<const Wide*>(buffer.data());
             for (int64_t i = begin; i + 4 <= end; i += 4) {
               __builtin_prefetch(at + i + 32);
               __builtin_prefetch(at + i + 33);
               __builtin_prefetch(at + i + 34);
               __builtin_prefetch(at + i + 35);
               for (int k = 0; k < 4; ++k) sums[k] ^= at[i + k];
             }
             const Wide all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
             sink += all[0] ^ all[7];
           });
         });
}

// Random weights that satisfy 2:4 if asked, else keep each with probability one half; the same few rows over and over.
Linear make(ThreadPool& pool, const Format& format, int64_t rows, int64_t cols) {
  constexpr int64_t kRows = 64;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> table(static_cast<size_t>(kRows * cols));
  for (size_t i = 0; i < table.size(); ++i) {
    const bool grouped = format.storage == Storage::kNm;
    const bool kept = format.storage == Storage::kDense ||
                      (grouped ? i % 4 == (i / 4) % 4 || i % 4 == (i / 4 + 1) % 4 : (random() & 1u) != 0);
    table[i] = kept ? normal(random) : 0.0f;
  }
  auto packed = PackedMatrix::pack(pool, format, rows, cols, [&](int64_t row, float* out) {
    std::copy_n(table.begin() + row % kRows * cols, cols, out);
  });
  if (!packed.is_ok()) {
    std::fprintf(stderr, "%s\n", packed.status().message().c_str());
    std::exit(1);
  }
  Linear linear;
  linear.weights = std::move(packed.value());
  return linear;
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
    for (const Format format :
         {Format{Storage::kDense, values}, Format{Storage::kBitmap, values}, Format{Storage::kNm, values, 2, 4}}) {
      if (!compute.kernels.takes(format)) continue;
      const Linear linear = make(*pool, format, rows, cols);
      const int64_t bytes = linear.weights.bytes();
      const Product product{&linear, x.data(), cols, 1, y.data(), rows};
      const double before = read_ceiling(*pool, bytes);
      const double time = median_seconds([&] { multiply(compute, std::span(&product, 1)); });
      const double ceiling = std::max(before, read_ceiling(*pool, bytes));
      const double rate = static_cast<double>(bytes) / time;
      const double ideal = static_cast<double>(rows * cols * 2) / ceiling;
      std::printf("%-12s %8.2f %8.2f %9.1f %10.1f %8.0f%% %21.2f\n", format.name().c_str(),
                  static_cast<double>(bytes) * 8 / static_cast<double>(rows * cols), time * 1e3, rate / 1e9,
                  ceiling / 1e9, 100 * rate / ceiling, ideal / time);
      std::fflush(stdout);
    }
  }
}
