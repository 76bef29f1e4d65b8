#include "prune/moments.h"

#include <algorithm>
#include <array>
#include <vector>

namespace espalier {
namespace {

constexpr int64_t kChunk = 1 << 16;
// Sums of a chunk that do not wait for each other.
constexpr int64_t kLanes = 4;

// Sums over the weights that are not zero, by the power of their distance from a place.
constexpr size_t kPowers = 5;
using Powers = std::array<double, kPowers>;

// Chunks are added in their order.
template <class SumOf>
Powers chunked(ThreadPool& pool, int64_t size, const SumOf& sum_of) {
  std::vector<Powers> parts(static_cast<size_t>((size + kChunk - 1) / kChunk));
  pool.parallel_for(static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      parts[static_cast<size_t>(c)] = sum_of(c * kChunk, std::min(size, (c + 1) * kChunk));
    }
  });
  Powers total{};
  for (const Powers& part : parts) {
    for (size_t power = 0; power < kPowers; ++power) total[power] += part[power];
  }
  return total;
}

// add(i, l) for every weight i and the lane l that it belongs to.
template <class Add>
void by_lanes(int64_t begin, int64_t end, const Add& add) {
  for (; begin + kLanes <= end; begin += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) add(begin + l, l);
  }
  for (int64_t l = 0; begin + l < end; ++l) add(begin + l, l);
}

// How many there are, and their sum.
Powers raw_sums(const float* weights, int64_t begin, int64_t end) {
  double count[kLanes] = {};
  double sum[kLanes] = {};
  by_lanes(begin, end, [&](int64_t i, int64_t l) {
    count[l] += weights[i] == 0.0f ? 0 : 1;
    sum[l] += static_cast<double>(weights[i]);
  });
  Powers out{};
  for (int64_t l = 0; l < kLanes; ++l) {
    out[0] += count[l];
    out[1] += sum[l];
  }
  return out;
}

// Second, third and fourth powers of their distance from the mean. Without a branch: which weights are zero cannot be
// foreseen.
Powers central_sums(const float* weights, int64_t begin, int64_t end, double mean) {
  double sums[3][kLanes] = {};
  by_lanes(begin, end, [&](int64_t i, int64_t l) {
    const double kept = weights[i] == 0.0f ? 0 : 1;
    const double distance = kept * (static_cast<double>(weights[i]) - mean);
    const double square = distance * distance;
    sums[0][l] += square;
    sums[1][l] += square * distance;
    sums[2][l] += square * square;
  });
  Powers out{};
  for (int power = 0; power < 3; ++power) {
    for (int64_t l = 0; l < kLanes; ++l) out[static_cast<size_t>(power) + 2] += sums[power][l];
  }
  return out;
}

double kurtosis(double count, double second, double fourth) {
  return second > 0 ? count * fourth / (second * second) : 0;
}

}  // namespace

WeightMoments weight_moments(ThreadPool& pool, const float* weights, int64_t size) {
  const Powers raw = chunked(pool, size, [&](int64_t begin, int64_t end) { return raw_sums(weights, begin, end); });
  WeightMoments moments;
  moments.size = size;
  const double kept = raw[0];
  moments.zeros = size - static_cast<int64_t>(kept);
  if (kept == 0) return moments;
  const double mean = raw[1] / kept;
  const Powers central =
      chunked(pool, size, [&](int64_t begin, int64_t end) { return central_sums(weights, begin, end, mean); });
  moments.kurtosis_kept = kurtosis(kept, central[2], central[4]);
  // About the mean of all, which zeros draw towards them: those of the others, moved, and the zeros'.
  const auto all = static_cast<double>(size);
  const double zeros = all - kept;
  const double mean_of_all = raw[1] / all;
  const double moved = mean - mean_of_all;
  const double square = moved * moved;
  const double square_of_all = mean_of_all * mean_of_all;
  const double second = central[2] + kept * square + zeros * square_of_all;
  const double fourth = central[4] + 4 * moved * central[3] + 6 * square * central[2] + kept * square * square +
                        zeros * square_of_all * square_of_all;
  moments.kurtosis = kurtosis(all, second, fourth);
  return moments;
}

}  // namespace espalier
