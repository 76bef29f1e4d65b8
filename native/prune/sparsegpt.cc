#include "prune/sparsegpt.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string>

#include "prune/panels.h"
#include "prune/value_grid.h"

namespace espalier {
namespace {

Status no_memory(const char* what, int64_t width) {
  return Status(Code::kOutOfMemory, "no memory for " + std::string(what) + " of " + std::to_string(width) +
                                        " input columns: free memory, or choose a method without weight update");
}

// The columns of one block, and what is the same for all rows.
struct Block {
  int64_t first = 0;
  int64_t width = 0;
  std::vector<float> factor;      // rows of U within the block, [width, width]
  std::vector<float> inverse;     // 1 / U_jj
  std::vector<float> importance;  // 1 / U_jj²: the loss that a squared error in column j adds
  float threshold = -1;           // unstructured: scores up to it are zeroed

  // √(w² / U_jj²): orders as its square does, and cannot underflow.
  float score(float weight, int64_t j) const { return std::fabs(weight) * inverse[static_cast<size_t>(j)]; }

  void take(const InverseFactor& from, int64_t start, int64_t columns) {
    first = start;
    width = columns;
    factor.assign(static_cast<size_t>(width * width), 0.0f);
    inverse.resize(static_cast<size_t>(width));
    importance.resize(static_cast<size_t>(width));
    for (int64_t i = 0; i < width; ++i) {
      const double* row = from.upper.data() + (first + i) * from.width + first;
      for (int64_t j = i; j < width; ++j) factor[static_cast<size_t>(i * width + j)] = static_cast<float>(row[j]);
      inverse[static_cast<size_t>(i)] = static_cast<float>(1.0 / row[i]);
      importance[static_cast<size_t>(i)] = static_cast<float>(1.0 / (row[i] * row[i]));
    }
  }
};

// kPanel rows of weights within a block. `columns` is [block, kPanel]: the weights, transposed; `errors`, of the same
// shape, receives each column's error over U_jj: a panel of the update to the right.
class RowTile {
 public:
  RowTile(const Block& block, const PanelKernels<float>& kernels, float* columns, float* errors)
      : block_(block), kernels_(kernels), columns_(columns), errors_(errors), keep_(block.width * kPanel, 1) {}

  // `given`: null, or the mask [rows, stride] of which this tile has `rows` rows from there on.
  void prune(const SparseGptPlan& plan, const uint8_t* given, int64_t stride, int64_t rows) {
    const bool rounds = is_quantised(plan.values);
    if (given != nullptr) {
      take_mask(given, stride, rows);
    } else if (!plan.budget.is_grouped()) {
      choose_below_threshold();
    }
    if (rounds) before_.assign(columns_, columns_ + block_.width * kPanel);
    if (!rounds || given == nullptr || has_zeros_) eliminate_pruned(plan.budget, given == nullptr);
    if (!rounds) return;
    std::vector<PanelGrid> grids;
    for (int64_t j = 0; j < block_.width; j += kGroup) {
      grids.emplace_back(plan.values, columns_ + j * kPanel, std::min<int64_t>(kGroup, block_.width - j),
                         block_.importance.data() + j);
    }
    std::copy(before_.begin(), before_.end(), columns_);
    eliminate_rounded(grids);
  }

 private:
  void take_mask(const uint8_t* given, int64_t stride, int64_t rows) {
    has_zeros_ = false;
    for (int64_t j = 0; j < block_.width; ++j) {
      for (int64_t r = 0; r < rows; ++r) {
        const uint8_t kept = given[r * stride + j];
        keep_[static_cast<size_t>(j * kPanel + r)] = kept;
        has_zeros_ = has_zeros_ || kept == 0;
      }
    }
  }

  void eliminate(int64_t j) {
    kernels_.eliminate(columns_ + (j + 1) * kPanel, block_.width - j - 1, errors_ + j * kPanel,
                       block_.factor.data() + j * block_.width + j + 1);
  }

  void eliminate_pruned(const Budget& budget, bool chooses) {
    for (int64_t j = 0; j < block_.width; ++j) {
      if (chooses && budget.is_grouped() && j % budget.group == 0) choose_in_group(budget, j);
      float* column = columns_ + j * kPanel;
      float* error = errors_ + j * kPanel;
      for (int64_t r = 0; r < kPanel; ++r) {
        const bool kept = keep_[static_cast<size_t>(j * kPanel + r)] != 0;
        error[r] = kept ? 0.0f : column[r] * block_.inverse[static_cast<size_t>(j)];
        column[r] = kept ? column[r] : 0.0f;
      }
      eliminate(j);
    }
  }

  void eliminate_rounded(std::vector<PanelGrid>& grids) {
    std::array<float, kPanel> kept;
    std::array<float, kPanel> rounded;
    for (int64_t j = 0; j < block_.width; ++j) {
      float* column = columns_ + j * kPanel;
      float* error = errors_ + j * kPanel;
      const uint8_t* keep = keep_.data() + j * kPanel;
      for (size_t r = 0; r < kPanel; ++r) kept[r] = keep[r] != 0 ? column[r] : 0.0f;
      grids[static_cast<size_t>(j / kGroup)].round(j % kGroup, kept.data(), rounded.data());
      for (size_t r = 0; r < kPanel; ++r) {
        const float target = keep[r] != 0 ? rounded[r] + 0.0f : 0.0f;
        error[r] = (column[r] - target) * block_.inverse[static_cast<size_t>(j)];
        column[r] = target;
      }
      eliminate(j);
    }
  }

  void choose_below_threshold() {
    for (int64_t j = 0; j < block_.width; ++j) {
      for (int64_t r = 0; r < kPanel; ++r) {
        const auto i = static_cast<size_t>(j * kPanel + r);
        keep_[i] = block_.score(columns_[i], j) > block_.threshold ? 1 : 0;
      }
    }
  }

  void choose_in_group(const Budget& budget, int64_t first) {
    const auto size = static_cast<size_t>(budget.group);
    group_.resize(2 * size);
    group_keep_.resize(size);
    for (int64_t r = 0; r < kPanel; ++r) {
      for (int64_t t = 0; t < budget.group; ++t) {
        group_[static_cast<size_t>(t)] = block_.score(columns_[(first + t) * kPanel + r], first + t);
      }
      mask_smallest(group_.data(), budget.group, budget.group - budget.keep, group_.data() + size, group_keep_.data());
      for (int64_t t = 0; t < budget.group; ++t) {
        keep_[static_cast<size_t>((first + t) * kPanel + r)] = group_keep_[static_cast<size_t>(t)];
      }
    }
  }

  const Block& block_;
  const PanelKernels<float>& kernels_;
  float* columns_;
  float* errors_;
  std::vector<uint8_t> keep_;  // [block, kPanel]
  bool has_zeros_ = true;
  std::vector<float> before_;  // the columns before anything was eliminated
  std::vector<float> group_;   // scores of one group, then scratch
  std::vector<uint8_t> group_keep_;
};

float block_threshold(ThreadPool& pool, const Block& block, double sparsity, const float* weights, int64_t rows,
                      int64_t cols, float* scores) {
  pool.parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = weights + r * cols + block.first;
      for (int64_t j = 0; j < block.width; ++j) scores[r * block.width + j] = block.score(row[j], j);
    }
  });
  return select_threshold(pool, scores, rows, block.width, block.width, sparsity);
}

}  // namespace

int64_t block_width(const SparseGptPlan& plan) {
  const int64_t chosen = plan.budget.is_grouped() && !plan.keep_zeros ? plan.budget.group : 1;
  const int64_t unit = std::max<int64_t>(1, is_quantised(plan.values) ? std::lcm<int64_t>(chosen, kGroup) : chosen);
  return std::max(unit, plan.block / unit * unit);
}

Status prune_sparsegpt(ThreadPool& pool, const InverseFactor& factor, const SparseGptPlan& plan, float* weights,
                       int64_t rows) {
  const PanelKernels<float>& kernels = panel_kernels().f32;
  const int64_t cols = factor.width;
  const int64_t step = std::min(block_width(plan), cols);
  const int64_t tiles = panel_count(rows);
  const int64_t tile_size = step * kPanel;
  // `columns` also serves as the scores from which a block's threshold is taken.
  AlignedBuffer<float> columns(static_cast<size_t>(tiles * tile_size));
  AlignedBuffer<float> errors(static_cast<size_t>(tiles * tile_size));
  AlignedBuffer<float> panels(static_cast<size_t>(panel_count(cols) * tile_size));
  AlignedBuffer<uint8_t> given(static_cast<size_t>(plan.keep_zeros ? rows * cols : 1));
  if (columns.size() == 0 || errors.size() == 0 || panels.size() == 0 || given.size() == 0) {
    return no_memory("the weight update", cols);
  }
  if (plan.keep_zeros) {
    pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * cols; i < end * cols; ++i) given.data()[i] = weights[i] != 0.0f ? 1 : 0;
    });
  }

  for (int64_t r = 0; r < rows; ++r) {
    for (const int64_t j : factor.dead) weights[r * cols + j] = 0.0f;
  }
  Block current;
  for (int64_t first = 0; first < cols; first += step) {
    current.take(factor, first, std::min(step, cols - first));
    const int64_t next = first + current.width;
    if (!plan.budget.is_grouped() && !plan.keep_zeros) {
      current.threshold = block_threshold(pool, current, plan.budget.sparsity, weights, rows, cols, columns.data());
    }
    pool.parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        float* source = weights + t * kPanel * cols + first;
        float* tile = columns.data() + t * tile_size;
        pack_transposed(source, cols, panel_width(rows, t), current.width, tile);
        const uint8_t* mask = plan.keep_zeros ? given.data() + t * kPanel * cols + first : nullptr;
        RowTile(current, kernels, tile, errors.data() + t * tile_size).prune(plan, mask, cols, panel_width(rows, t));
        unpack_transposed(tile, panel_width(rows, t), current.width, source, cols);
      }
    });
    const int64_t right = panel_count(cols - next);
    pool.parallel_for(right, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        float* panel = panels.data() + p * tile_size;
        const int64_t width = panel_width(cols - next, p);
        std::fill(panel, panel + tile_size, 0.0f);
        for (int64_t i = 0; i < current.width; ++i) {
          const double* row = factor.upper.data() + (first + i) * cols + next + p * kPanel;
          for (int64_t j = 0; j < width; ++j) panel[i * kPanel + j] = static_cast<float>(row[j]);
        }
      }
    });
    pool.parallel_for(tiles * right, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = i / right;
        const int64_t p = i % right;
        update_tile(kernels, current.width, errors.data() + t * tile_size, panels.data() + p * tile_size, -1.0f,
                    weights + t * kPanel * cols + next + p * kPanel, cols, panel_width(rows, t),
                    panel_width(cols - next, p));
      }
    });
  }
  return Status::ok();
}

}  // namespace espalier
