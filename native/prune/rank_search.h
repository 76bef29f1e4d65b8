// The value at a rank among scores that are not in memory together.
#pragma once

#include <array>
#include <cstdint>

#include "core/thread_pool.h"

namespace espalier {

// Floats that are not negative compare as their bits do, so the value is found digit by digit from the top: all scores
// are shown once a round, in parts and any order, and next_round() says whether another round is needed.
//
//   RankSearch search(rank);
//   do { for each part: search.add(pool, scores, rows, cols, stride); } while (search.next_round());
//   search.value()
class RankSearch {
 public:
  // From 0, ascending; below the number of scores that are shown.
  explicit RankSearch(int64_t rank) : rank_(rank) {}

  // scores[r·stride + c], none negative or NaN.
  void add(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, int64_t stride);
  bool next_round();
  float value() const;

 private:
  static constexpr int kDigitBits = 11;
  static constexpr size_t kDigits = size_t{1} << kDigitBits;

  int64_t rank_;
  int shift_ = 32 - kDigitBits;
  uint32_t prefix_ = 0;  // the digits found
  uint32_t found_ = 0;   // and where they are; the last digit overlaps the one before it
  std::array<int64_t, kDigits> histogram_{};
};

}  // namespace espalier
