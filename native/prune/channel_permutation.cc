#include "prune/channel_permutation.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <optional>
#include <random>

#include "core/aligned.h"
#include "prune/assignment.h"
#include "prune/panels.h"

namespace espalier {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kDepth = 512;  // rows that are packed at a time: two panels of them fit into a cache

static_assert(kAssignedGroups % kPanel == 0);

std::vector<int32_t> identity(int64_t count) {
  std::vector<int32_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// Columns by falling sums of scores, dealt to the groups forth and back.
std::vector<int32_t> dealt(const float* scores, int64_t rows, int64_t cols, int64_t group) {
  std::vector<double> sums(static_cast<size_t>(cols), 0.0);
  for (int64_t i = 0; i < rows * cols; ++i) sums[static_cast<size_t>(i % cols)] += static_cast<double>(scores[i]);
  std::vector<int32_t> ranked = identity(cols);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](int32_t a, int32_t b) { return sums[static_cast<size_t>(a)] > sums[static_cast<size_t>(b)]; });
  const int64_t groups = cols / group;
  std::vector<int32_t> order(ranked.size());
  for (int64_t rank = 0; rank < cols; ++rank) {
    const int64_t place = rank / groups;
    const int64_t step = rank % groups;
    const int64_t to = place % 2 == 0 ? step : groups - 1 - step;
    order[static_cast<size_t>(to * group + place)] = ranked[static_cast<size_t>(rank)];
  }
  return order;
}

// What the columns at one place of the groups would keep in other groups, and who goes where.
class Exchange {
 public:
  Exchange(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, const Budget& budget)
      : pool_(pool),
        scores_(scores),
        rows_(rows),
        cols_(cols),
        budget_(budget),
        groups_(cols / budget.group),
        panels_(panel_count(groups_)),
        entering_(static_cast<size_t>(panels_ * kDepth * kPanel)),
        needed_(static_cast<size_t>(panels_ * kDepth * kPanel)) {
    for (int64_t first = 0; first < panels_; first += kAssignedGroups / kPanel) {
      const int64_t end = std::min(panels_, first + kAssignedGroups / kPanel);
      for (int64_t i = first; i < end; ++i) {
        for (int64_t j = first; j < end; ++j) tiles_.push_back({first, i, j});
      }
      const int64_t count = std::min(groups_, end * kPanel) - first * kPanel;
      shares_.push_back({first * kPanel, count, std::vector<float>(static_cast<size_t>(count * count))});
    }
  }

  bool has_memory() const { return entering_.size() > 0 && needed_.size() > 0; }

  // Exchanges columns at `place` of the groups, those of a share being next to each other in `sequence`. Returns how
  // many moved.
  Result<int64_t> run(std::vector<int32_t>& order, int64_t place, const std::vector<int32_t>& sequence,
                      const std::atomic<bool>* cancel) {
    for (Share& share : shares_) std::fill(share.gain.begin(), share.gain.end(), 0.0f);
    for (int64_t row = 0; row < rows_; row += kDepth) {
      if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return Status(Code::kAborted, "stopped");
      pack(order, place, sequence, row, std::min(kDepth, rows_ - row));
      add_gains(std::min(kDepth, rows_ - row));
    }
    std::vector<Status> failed(shares_.size(), Status::ok());
    std::vector<int64_t> moved(shares_.size(), 0);
    const std::vector<int32_t> before = order;
    const auto at = [&](int64_t index) {
      return static_cast<size_t>(sequence[static_cast<size_t>(index)] * budget_.group + place);
    };
    pool_.parallel_for(static_cast<int64_t>(shares_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        const Share& share = shares_[static_cast<size_t>(s)];
        const Result<std::vector<int32_t>> to = best_assignment(share.gain, share.count, cancel);
        if (!to.is_ok()) {
          failed[static_cast<size_t>(s)] = to.status();
          continue;
        }
        for (int64_t i = 0; i < share.count; ++i) {
          const int64_t target = to.value()[static_cast<size_t>(i)];
          order[at(share.first + target)] = before[at(share.first + i)];
          moved[static_cast<size_t>(s)] += target != i ? 1 : 0;
        }
      }
    });
    for (const Status& status : failed) ESPALIER_TRY(status);
    return std::accumulate(moved.begin(), moved.end(), int64_t{0});
  }

 private:
  // Groups that exchange columns among themselves: indices into a sequence of groups.
  struct Share {
    int64_t first;
    int64_t count;
    std::vector<float> gain;  // [count, count]: what the column of one group adds to the score kept in another
  };
  struct Tile {
    int64_t first, i, j;  // panels: of the share, of entering columns, of groups
  };

  // A column of score x adds max(0, x − t) to a row of a group whose other columns have t as their `keep`-th largest.
  void pack(const std::vector<int32_t>& order, int64_t place, const std::vector<int32_t>& sequence, int64_t row,
            int64_t depth) {
    const auto group = static_cast<size_t>(budget_.group);
    pool_.parallel_for(panels_, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> others(group - 1);
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t i = 0; i < panel_width(groups_, p); ++i) {
          const int32_t* columns =
              order.data() + static_cast<size_t>(sequence[static_cast<size_t>(p * kPanel + i)]) * group;
          for (int64_t k = 0; k < depth; ++k) {
            const float* own = scores_ + (row + k) * cols_;
            const auto to = static_cast<size_t>((p * kDepth + k) * kPanel + i);
            entering_[to] = own[columns[place]];
            for (size_t c = 0, o = 0; c < group; ++c) {
              if (static_cast<int64_t>(c) != place) others[o++] = own[columns[c]];
            }
            const auto nth = others.begin() + (budget_.keep - 1);
            std::nth_element(others.begin(), nth, others.end(), std::greater<>());
            needed_[to] = *nth;
          }
        }
      }
    });
  }

  void add_gains(int64_t depth) {
    const PanelKernels<float>& kernels = panel_kernels().f32;
    const int64_t per_share = kAssignedGroups / kPanel;
    pool_.parallel_for(static_cast<int64_t>(tiles_.size()), 1, [&](int64_t begin, int64_t end) {
      alignas(64) float sum[kPanel * kPanel];
      for (int64_t t = begin; t < end; ++t) {
        const Tile& tile = tiles_[static_cast<size_t>(t)];
        std::fill(std::begin(sum), std::end(sum), 0.0f);
        kernels.excess(depth, entering_.data() + tile.i * kDepth * kPanel, needed_.data() + tile.j * kDepth * kPanel,
                       sum);
        Share& share = shares_[static_cast<size_t>(tile.first / per_share)];
        const int64_t top = tile.i * kPanel - share.first;
        const int64_t left = tile.j * kPanel - share.first;
        for (int64_t i = 0; i < panel_width(groups_, tile.i); ++i) {
          for (int64_t j = 0; j < panel_width(groups_, tile.j); ++j) {
            share.gain[static_cast<size_t>((top + i) * share.count + left + j)] += sum[i * kPanel + j];
          }
        }
      }
    });
  }

  ThreadPool& pool_;
  const float* scores_;
  int64_t rows_, cols_;
  Budget budget_;
  int64_t groups_, panels_;
  AlignedBuffer<float> entering_, needed_;  // panels [kDepth, kPanel] over the sequence of groups
  std::vector<Share> shares_;
  std::vector<Tile> tiles_;
};

// Fisher and Yates, by random bits that are the same everywhere.
void shuffle(std::vector<int32_t>& sequence, std::mt19937_64& random) {
  for (size_t i = sequence.size(); i > 1; --i) std::swap(sequence[i - 1], sequence[random() % i]);
}

}  // namespace

double kept_score(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, const Budget& budget,
                  const std::vector<int32_t>& order) {
  std::vector<double> by_row(static_cast<size_t>(rows), 0.0);
  const auto group = static_cast<size_t>(budget.group);
  pool.parallel_for(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> own(group);
    for (int64_t r = begin; r < end; ++r) {
      const float* row = scores + r * cols;
      for (size_t first = 0; first < static_cast<size_t>(cols); first += group) {
        for (size_t c = 0; c < group; ++c) {
          own[c] = row[order.empty() ? first + c : static_cast<size_t>(order[first + c])];
        }
        const auto end_of_kept = own.begin() + budget.keep;
        std::nth_element(own.begin(), end_of_kept - 1, own.end(), std::greater<>());
        by_row[static_cast<size_t>(r)] += std::accumulate(own.begin(), end_of_kept, 0.0);
      }
    }
  });
  return std::accumulate(by_row.begin(), by_row.end(), 0.0);
}

Result<std::vector<int32_t>> permute_for_groups(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols,
                                                const Budget& budget, const std::atomic<bool>* cancel) {
  if (!budget.is_grouped()) return Status(Code::kUsage, "channels are permuted for n:m only");
  ESPALIER_TRY(check_budget(budget, cols));
  Exchange exchange(pool, scores, rows, cols, budget);
  if (!exchange.has_memory()) return Status(Code::kOutOfMemory, "no memory to permute channels: free memory");
  std::vector<int32_t> order = dealt(scores, rows, cols, budget.group);
  const int64_t groups = cols / budget.group;
  std::vector<int32_t> sequence = identity(groups);
  std::mt19937_64 random(0);
  for (int pass = 0; pass < kPermutationPasses; ++pass) {
    int64_t moved = 0;
    for (int64_t place = 0; place < budget.group; ++place) {
      if (groups > kAssignedGroups) shuffle(sequence, random);
      const Result<int64_t> step = exchange.run(order, place, sequence, cancel);
      if (!step.is_ok()) return step.status();
      moved += step.value();
    }
    if (moved == 0) break;
  }
  const double before = kept_score(pool, scores, rows, cols, budget, {});
  if (kept_score(pool, scores, rows, cols, budget, order) > before) return order;
  return identity(cols);
}

}  // namespace espalier
