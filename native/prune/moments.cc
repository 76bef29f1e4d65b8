#include "prune/moments.h"

#include <algorithm>
#include <vector>

namespace espalier {
namespace {

constexpr int64_t kChunk = 1 << 16;

// Sums over weights; `n` of them.
struct Sums {
  double n = 0;
  double first = 0;
  double second = 0;
  double fourth = 0;

  void operator+=(const Sums& other) {
    n += other.n;
    first += other.first;
    second += other.second;
    fourth += other.fourth;
  }
};

// `sum_of(begin, end)` over chunks, added in their order.
template <class SumOf>
Sums chunked(ThreadPool& pool, int64_t size, const SumOf& sum_of) {
  std::vector<Sums> parts(static_cast<size_t>((size + kChunk - 1) / kChunk));
  pool.parallel_for(static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      parts[static_cast<size_t>(c)] = sum_of(c * kChunk, std::min(size, (c + 1) * kChunk));
    }
  });
  Sums total;
  for (const Sums& part : parts) total += part;
  return total;
}

double kurtosis_of(ThreadPool& pool, const float* weights, int64_t size, double mean, bool with_zeros) {
  const Sums central = chunked(pool, size, [&](int64_t begin, int64_t end) {
    Sums sums;
    for (int64_t i = begin; i < end; ++i) {
      if (weights[i] == 0.0f && !with_zeros) continue;
      const double square = (weights[i] - mean) * (weights[i] - mean);
      sums.n += 1;
      sums.second += square;
      sums.fourth += square * square;
    }
    return sums;
  });
  return central.second > 0 ? central.n * central.fourth / (central.second * central.second) : 0;
}

}  // namespace

WeightMoments weight_moments(ThreadPool& pool, const float* weights, int64_t size) {
  // Zeros add nothing to the sum, so one pass gives both means.
  const Sums raw = chunked(pool, size, [&](int64_t begin, int64_t end) {
    Sums sums;
    for (int64_t i = begin; i < end; ++i) {
      sums.n += weights[i] == 0.0f ? 0 : 1;
      sums.first += weights[i];
    }
    return sums;
  });
  WeightMoments moments;
  moments.size = size;
  moments.zeros = size - static_cast<int64_t>(raw.n);
  if (size == 0) return moments;
  moments.kurtosis = kurtosis_of(pool, weights, size, raw.first / static_cast<double>(size), true);
  if (raw.n > 0) moments.kurtosis_kept = kurtosis_of(pool, weights, size, raw.first / raw.n, false);
  return moments;
}

}  // namespace espalier
