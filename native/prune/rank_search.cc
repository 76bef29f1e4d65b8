#include "prune/rank_search.h"

#include <algorithm>
#include <bit>
#include <mutex>

namespace espalier {

void RankSearch::add(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, int64_t stride) {
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 18) / std::max<int64_t>(1, cols));
  std::mutex mutex;
  pool.parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    std::array<int64_t, kDigits> part{};
    for (int64_t r = begin; r < end; ++r) {
      const float* row = scores + r * stride;
      for (int64_t c = 0; c < cols; ++c) {
        const auto bits = std::bit_cast<uint32_t>(row[c]);
        if (((bits ^ prefix_) & found_) == 0) ++part[(bits >> shift_) & (kDigits - 1)];
      }
    }
    std::lock_guard lock(mutex);
    for (size_t d = 0; d < kDigits; ++d) histogram_[d] += part[d];
  });
}

bool RankSearch::next_round() {
  uint32_t digit = 0;
  while (digit + 1 < kDigits && rank_ >= histogram_[digit]) rank_ -= histogram_[digit++];
  prefix_ |= digit << shift_;
  found_ |= static_cast<uint32_t>(kDigits - 1) << shift_;
  histogram_.fill(0);
  if (shift_ == 0) return false;
  shift_ = std::max(0, shift_ - kDigitBits);
  return true;
}

float RankSearch::value() const { return std::bit_cast<float>(prefix_); }

}  // namespace espalier
