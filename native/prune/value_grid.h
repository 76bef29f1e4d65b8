// The grids that weights are rounded to where pruning and quantisation are one pass: int8 and int4 with an f16 scale
// for each row and kGroup consecutive inputs, as packed matrices store them (sparse/packed_matrix.h).
//
// What is rounded here survives: stored as bf16, f16 or f32 and packed again as int8 or int4, it gives the same codes
// and scales, because the packer finds the scale in the largest weight of a group.
//   int4  A scale has 5 significant bits, so that q · scale needs 8 and is exact in all three; and some weight of each
//         group is q = ±7 or −8 times the scale: the packer, which tries max|w| / 7 and −(largest w) / 8, meets the
//         scale with which no error is left.
//   int8  A scale is e / 127 rounded to f16, where e is a bf16 number that gives the same scale after it was stored,
//         and some weight of each group is q = ±127. What is stored is less than half a step from q · scale.
// The weight that has to be at the end of the grid is the largest of the group, the anchor.
#pragma once

#include <array>
#include <cstdint>

#include "core/thread_pool.h"
#include "prune/panel_kernels.h"
#include "sparse/format.h"

namespace espalier {

// The grids of one group of inputs for the kPanel rows of a panel.
class PanelGrid {
 public:
  // `values`: kInt8 or kInt4. `columns` is [width, kPanel], width <= kGroup: the weights by which scales are chosen,
  // zeros where they are pruned. `importance` [width]: how much a squared error in each column counts.
  PanelGrid(Values values, const float* columns, int64_t width, const float* importance);

  // target[r] = the grid's value nearest to weights[r] for the kPanel rows of column `j`. To be called once for each
  // column in which a row keeps a weight, in ascending order: the anchor goes to the end of the grid unless a weight
  // to its left is there.
  void round(int64_t j, const float* weights, float* target);

 private:
  void choose_int8();
  void choose_int4(const float* columns, int64_t width, const float* importance);

  bool is_int4_;
  std::array<float, kPanel> scale_;
  std::array<float, kPanel> inverse_;
  std::array<float, kPanel> extreme_;   // the weight of largest magnitude
  std::array<int32_t, kPanel> anchor_;  // and its column
  std::array<uint8_t, kPanel> reached_{};
};

// Rounds each weight of [rows, cols] to the grid of its group, by least squared error and without compensation. Zeros
// stay. The result is the same for any number of threads.
void round_to_nearest(ThreadPool& pool, Values values, float* weights, int64_t rows, int64_t cols);

}  // namespace espalier
