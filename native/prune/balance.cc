#include "prune/balance.h"

#include <algorithm>
#include <cmath>

#include "prune/mask.h"
#include "prune/rank_search.h"

namespace espalier {

Result<std::vector<double>> balanced_sparsities(ThreadPool& pool, double sparsity, const std::vector<int64_t>& sizes,
                                                const std::function<Result<std::span<const float>>(size_t)>& scores) {
  std::vector<int64_t> zeros(sizes.size(), 0);
  std::vector<bool> capped(sizes.size(), false);
  int64_t all = 0;
  for (const int64_t size : sizes) all += size;
  int64_t left = pruned_count(sparsity, all);
  for (bool settled = left == 0; !settled;) {
    RankSearch search(left - 1);
    const auto each = [&](const auto& use) -> Status {
      for (size_t i = 0; i < sizes.size(); ++i) {
        if (capped[i]) continue;
        const Result<std::span<const float>> found = scores(i);
        if (!found.is_ok()) return found.status();
        use(i, found.value());
      }
      return Status::ok();
    };
    do {
      ESPALIER_TRY(each([&](size_t, std::span<const float> own) {
        const auto count = static_cast<int64_t>(own.size());
        search.add(pool, own.data(), count, 1, 1);
      }));
    } while (search.next_round());
    ESPALIER_TRY(each([&](size_t i, std::span<const float> own) {
      zeros[i] = std::count_if(own.begin(), own.end(), [&](float score) { return score <= search.value(); });
    }));
    settled = true;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const int64_t most = pruned_count((1 + sparsity) / 2, sizes[i]);
      if (capped[i] || zeros[i] <= most) continue;
      zeros[i] = most;
      capped[i] = true;
      left -= most;
      settled = false;
    }
  }
  std::vector<double> shares;
  for (size_t i = 0; i < sizes.size(); ++i) {
    // Half a weight above, so that the product with the size rounds down to the count.
    shares.push_back((static_cast<double>(zeros[i]) + 0.5) / static_cast<double>(sizes[i]));
  }
  return shares;
}

}  // namespace espalier
