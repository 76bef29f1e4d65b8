#include "core/read_ceiling.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "core/aligned.h"
#include "core/cpu_features.h"

namespace espalier {
namespace {

constexpr size_t kPasses = 15;
constexpr double kSeconds = 0.2;
// Lines that a thread takes at a time: 1 MB.
constexpr int64_t kGrain = 16384;
// Lines between a load and its prefetch: 2 KB. One stream; two with 1 KB each read at most 3 % more.
constexpr int64_t kAhead = 32;

typedef uint64_t Line __attribute__((vector_size(kCacheLine)));

template <Reading kReading>
__attribute__((always_inline)) inline uint64_t fold(const uint8_t* data, int64_t begin, int64_t end) {
  const auto* line = reinterpret_cast<const Line*>(data);
  Line sums[4] = {};
  int64_t i = begin;
  for (; i + 4 <= end; i += 4) {
    for (int k = 0; kReading == Reading::kPrefetched && k < 4; ++k) __builtin_prefetch(line + i + kAhead + k);
    for (int k = 0; k < 4; ++k) sums[k] ^= line[i + k];
  }
  for (; i < end; ++i) sums[0] ^= line[i];
  const Line all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  uint64_t words = 0;
  for (int k = 0; k < 8; ++k) words ^= all[k];
  return words;
}

using Fold = uint64_t (*)(const uint8_t* data, int64_t begin, int64_t end);

template <Reading kReading>
uint64_t fold_narrow(const uint8_t* data, int64_t begin, int64_t end) {
  return fold<kReading>(data, begin, end);
}
#if defined(__x86_64__)
template <Reading kReading>
__attribute__((target("avx2"))) uint64_t fold_avx2(const uint8_t* data, int64_t begin, int64_t end) {
  return fold<kReading>(data, begin, end);
}
template <Reading kReading>
__attribute__((target("avx512f"))) uint64_t fold_avx512(const uint8_t* data, int64_t begin, int64_t end) {
  return fold<kReading>(data, begin, end);
}
#endif

// By what the processor has, not by what ESPALIER_ISA asks of the kernels: it is the machine that is measured.
template <Reading kReading>
Fold widest_fold() {
#if defined(__x86_64__)
  if (cpu_features().best >= Isa::kAvx512) return fold_avx512<kReading>;
  if (cpu_features().best >= Isa::kAvx2) return fold_avx2<kReading>;
#endif
  return fold_narrow<kReading>;
}

}  // namespace

uint64_t read_lines(ThreadPool& pool, const uint8_t* data, int64_t lines, Reading reading) {
  const Fold fold_lines =
      reading == Reading::kPlain ? widest_fold<Reading::kPlain>() : widest_fold<Reading::kPrefetched>();
  std::atomic<uint64_t> words{0};
  pool.parallel_for(lines, kGrain, [&](int64_t begin, int64_t end) {
    words.fetch_xor(fold_lines(data, begin, end), std::memory_order_relaxed);
  });
  return words.load();
}

Result<double> read_ceiling(ThreadPool& pool, int64_t bytes, Reading reading) {
  if (bytes < 1) return Status(Code::kUsage, "the read ceiling needs a positive number of bytes");
  const int64_t lines = (bytes + kCacheLine - 1) / kCacheLine;
  AlignedBuffer<uint8_t> buffer;
  buffer.reset_uninitialised(static_cast<size_t>(lines * kCacheLine));
  if (buffer.data() == nullptr) {
    return Status(Code::kOutOfMemory, "not enough memory to read " + std::to_string(bytes) + " bytes from");
  }
  // Pages that were never written are all one page of zeros, which stays in the cache.
  pool.parallel_for(lines, kGrain, [&](int64_t begin, int64_t end) {
    std::memset(buffer.data() + begin * kCacheLine, 1, static_cast<size_t>((end - begin) * kCacheLine));
  });
  std::vector<double> times;
  double total = 0;
  uint64_t words = read_lines(pool, buffer.data(), lines, reading);
  while (times.size() < kPasses || total < kSeconds) {
    const auto start = std::chrono::steady_clock::now();
    words |= read_lines(pool, buffer.data(), lines, reading);
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    total += times.back();
  }
  // The eight words of a line are equal; asking keeps the reads from being optimised away.
  if (words != 0) return Status(Code::kInternal, "memory changed while it was read");
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return static_cast<double>(lines * kCacheLine) / *middle;
}

}  // namespace espalier
