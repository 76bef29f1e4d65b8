#include "prune/mask.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "prune/rank_search.h"

namespace espalier {
Status check_budget(const Budget& budget, int64_t cols) {
  if (!budget.is_grouped()) {
    if (budget.sparsity >= 0 && budget.sparsity < 1) return Status::ok();
    return Status(Code::kUsage, "sparsity " + std::to_string(budget.sparsity) + " is out of range: 0 <= sparsity < 1");
  }
  const std::string name = std::to_string(budget.keep) + ":" + std::to_string(budget.group);
  if (budget.keep < 1 || budget.keep >= budget.group) {
    return Status(Code::kUsage, "pattern " + name + " is out of range: N:M keeps N of every M inputs, 0 < N < M");
  }
  if (cols % budget.group != 0) {
    return Status(Code::kUsage, "pattern " + name + " does not fit a matrix with " + std::to_string(cols) +
                                    " input columns: M must divide them");
  }
  return Status::ok();
}

int64_t pruned_count(double sparsity, int64_t count) {
  return static_cast<int64_t>(std::floor(sparsity * static_cast<double>(count)));
}

float select_rank(ThreadPool& pool, const float* values, int64_t rows, int64_t cols, int64_t stride, int64_t rank) {
  RankSearch search(rank);
  do {
    search.add(pool, values, rows, cols, stride);
  } while (search.next_round());
  return search.value();
}

float select_threshold(ThreadPool& pool, const float* values, int64_t rows, int64_t cols, int64_t stride,
                       double sparsity) {
  const int64_t zeros = pruned_count(sparsity, rows * cols);
  return zeros > 0 ? select_rank(pool, values, rows, cols, stride, zeros - 1) : -1.0f;
}

void mask_threshold(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, int64_t block, double sparsity,
                    uint8_t* mask) {
  for (int64_t first = 0; first < cols; first += block) {
    const int64_t width = std::min(block, cols - first);
    const float threshold = select_threshold(pool, scores + first, rows, width, cols, sparsity);
    pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t start = r * cols + first;
        for (int64_t i = start; i < start + width; ++i) mask[i] = scores[i] > threshold ? 1 : 0;
      }
    });
  }
}

void mask_smallest(const float* scores, int64_t count, int64_t zeros, float* scratch, uint8_t* mask) {
  if (zeros == 0) {
    std::fill(mask, mask + count, uint8_t{1});
    return;
  }
  std::copy(scores, scores + count, scratch);
  std::nth_element(scratch, scratch + (zeros - 1), scratch + count);
  const float threshold = scratch[zeros - 1];
  int64_t ties = zeros;  // scores equal to the threshold that are zeroed
  for (int64_t i = 0; i < count; ++i) ties -= scores[i] < threshold ? 1 : 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool zero = scores[i] < threshold || (scores[i] == threshold && ties-- > 0);
    mask[i] = zero ? 0 : 1;
  }
}

void mask_rows(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, double sparsity, uint8_t* mask) {
  mask_groups(pool, scores, rows, cols, cols - pruned_count(sparsity, cols), cols, mask);
}

void mask_groups(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, int64_t keep, int64_t group,
                 uint8_t* mask) {
  pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(group));
    for (int64_t i = begin * cols; i < end * cols; i += group) {
      mask_smallest(scores + i, group, group - keep, scratch.data(), mask + i);
    }
  });
}

}  // namespace espalier
