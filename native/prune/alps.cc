#include "prune/alps.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "prune/refit.h"

namespace espalier {
namespace {

constexpr double kFirstPenalty = 0.1;
constexpr int64_t kMaxSteps = 300;
constexpr int64_t kStepsPerPenalty = 3;
constexpr int64_t kRefitSteps = 10;

Status no_memory(int64_t rows, int64_t width) {
  return Status(Code::kOutOfMemory, "no memory for ADMM on a " + std::to_string(rows) + " x " + std::to_string(width) +
                                        " matrix (14 bytes a weight): free memory, or choose another method");
}

// The state of ADMM over a matrix. Of D, V and B only `sum` = B + V / ρ is kept: D is its largest entries, and
// V = ρ · (sum − D).
class Admm {
 public:
  Admm(ThreadPool& pool, const ScaledHessian& site, const Budget& budget, int64_t rows)
      : pool_(pool),
        site_(site),
        budget_(budget),
        rows_(rows),
        tiles_(panel_count(rows)),
        tile_size_(tile_size(site.width)) {}

  Status run(float* weights, AlpsReport& report) {
    const auto size = static_cast<size_t>(tiles_ * tile_size_);
    linear_.reset(size);
    sum_.reset(size);
    magnitudes_.reset(size);
    support_.reset(size);
    earlier_.reset(size);
    if (linear_.size() == 0 || sum_.size() == 0 || magnitudes_.size() == 0 || support_.size() == 0 ||
        earlier_.size() == 0) {
      return no_memory(rows_, site_.width);
    }
    ESPALIER_TRY(inverse_.allocate(site_.width));
    load(weights);
    std::fill(support_.data(), support_.data() + size, uint8_t{1});  // D starts as W
    double penalty = kFirstPenalty;
    double before = penalty;  // that V was made with
    for (report.steps = 0; report.steps < kMaxSteps;) {
      if (report.steps % kStepsPerPenalty == 0) ESPALIER_TRY(inverse_.factor(pool_, site_, penalty));
      step(static_cast<float>(before), static_cast<float>(penalty));
      before = penalty;
      if (++report.steps % kStepsPerPenalty != 0) continue;
      const int64_t changed = count_changes();
      if (report.steps > kStepsPerPenalty && changed == 0) break;
      penalty *= growth(changed);
    }
    report.penalty = before;
    store(weights);
    return Status::ok();
  }

 private:
  // The faster the choice still changes, the faster ρ grows.
  double growth(int64_t changed) const {
    const auto kept = static_cast<double>(rows_ * site_.width - pruned());
    const double share = static_cast<double>(changed) / kept;
    return share >= 0.1 ? 1.3 : share >= 0.005 ? 1.2 : 1.1;
  }

  int64_t pruned() const {
    const int64_t all = rows_ * site_.width;
    return budget_.is_grouped() ? all / budget_.group * (budget_.group - budget_.keep)
                                : pruned_count(budget_.sparsity, all);
  }

  void load(const float* weights) {
    const int64_t n = site_.width;
    pool_.parallel_for(tiles_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        float* sum = sum_.data() + t * tile_size_;
        site_.load_tile(weights + t * kPanel * n, panel_width(rows_, t), sum);
        site_.multiply(sum, linear_.data() + t * tile_size_);
      }
    });
  }

  void store(float* weights) {
    const int64_t n = site_.width;
    pool_.parallel_for(tiles_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        float* sum = sum_.data() + t * tile_size_;
        const uint8_t* support = support_.data() + t * tile_size_;
        for (int64_t i = 0; i < tile_size_; ++i) sum[i] = support[i] != 0 ? sum[i] : 0.0f;
        site_.store_tile(sum, panel_width(rows_, t), weights + t * kPanel * n);
      }
    });
  }

  // B = (H + ρ·I)⁻¹ · (H·W − V + ρ·D), then the choice of D from B + V / ρ.
  void step(float before, float penalty) {
    pool_.parallel_for(tiles_, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> right(static_cast<size_t>(tile_size_));
      std::vector<float> middle(right.size());
      std::vector<float> solved(right.size());
      for (int64_t t = begin; t < end; ++t) {
        float* sum = sum_.data() + t * tile_size_;
        const float* linear = linear_.data() + t * tile_size_;
        const uint8_t* support = support_.data() + t * tile_size_;
        for (size_t i = 0; i < right.size(); ++i) {
          right[i] = linear[i] + (support[i] != 0 ? penalty : -before) * sum[i];
        }
        inverse_.apply(right.data(), middle.data(), solved.data());
        for (size_t i = 0; i < right.size(); ++i) {
          sum[i] = solved[i] + (support[i] != 0 ? 0.0f : before / penalty * sum[i]);
        }
      }
    });
    if (budget_.is_grouped()) {
      choose_in_groups();
    } else {
      choose_largest();
    }
  }

  void choose_largest() {
    const int64_t zeros = pruned_count(budget_.sparsity, rows_ * site_.width);
    const int64_t padding = tiles_ * tile_size_ - rows_ * site_.width;  // zeros, below every weight
    pool_.parallel_for(tiles_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * tile_size_; i < end * tile_size_; ++i)
        magnitudes_[static_cast<size_t>(i)] = std::fabs(sum_.data()[i]);
    });
    const float threshold =
        zeros == 0 ? -1.0f
                   : select_rank(pool_, magnitudes_.data(), tiles_, tile_size_, tile_size_, padding + zeros - 1);
    pool_.parallel_for(tiles_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * tile_size_; i < end * tile_size_; ++i) {
        support_.data()[i] = magnitudes_[static_cast<size_t>(i)] > threshold ? 1 : 0;
      }
    });
  }

  void choose_in_groups() {
    const int64_t group = budget_.group;
    pool_.parallel_for(tiles_, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scores(static_cast<size_t>(2 * group));
      std::vector<uint8_t> keep(static_cast<size_t>(group));
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t first = t * tile_size_; first < t * tile_size_ + site_.width * kPanel; first += group * kPanel) {
          for (int64_t r = 0; r < kPanel; ++r) {
            for (int64_t k = 0; k < group; ++k) {
              scores[static_cast<size_t>(k)] = std::fabs(sum_.data()[first + k * kPanel + r]);
            }
            mask_smallest(scores.data(), group, group - budget_.keep, scores.data() + group, keep.data());
            for (int64_t k = 0; k < group; ++k) {
              support_.data()[first + k * kPanel + r] = keep[static_cast<size_t>(k)];
            }
          }
        }
      }
    });
  }

  // Since the last call.
  int64_t count_changes() {
    std::atomic<int64_t> changed{0};
    pool_.parallel_for(tiles_, 1, [&](int64_t begin, int64_t end) {
      int64_t own = 0;
      for (int64_t i = begin * tile_size_; i < end * tile_size_; ++i) {
        own += support_.data()[i] != earlier_.data()[i] ? 1 : 0;
        earlier_.data()[i] = support_.data()[i];
      }
      changed += own;
    });
    return changed;
  }

  ThreadPool& pool_;
  const ScaledHessian& site_;
  const Budget& budget_;
  int64_t rows_;
  int64_t tiles_;
  int64_t tile_size_;
  ShiftedInverse inverse_;
  AlignedBuffer<float> linear_;  // H·W
  AlignedBuffer<float> sum_;
  AlignedBuffer<uint8_t> support_;
  AlignedBuffer<uint8_t> earlier_;
  AlignedBuffer<float> magnitudes_;
};

}  // namespace

Result<AlpsReport> prune_alps(ThreadPool& pool, const ScaledHessian& site, const Budget& budget, float* weights,
                              int64_t rows) {
  // Kept weights are refitted to what the matrix was.
  std::vector<float> target(weights, weights + rows * site.width);
  AlpsReport report;
  ESPALIER_TRY(Admm(pool, site, budget, rows).run(weights, report));
  ESPALIER_TRY(refit(pool, site, kRefitSteps, target.data(), weights, rows));
  return report;
}

}  // namespace espalier
