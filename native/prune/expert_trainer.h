// One expert, y = down(silu(gate x) ⊙ up x), being trained: its weights of which some are fixed at zero, the products
// of a batch forward and backward, and the step of Adam. Tokens go through in blocks of kPanel; blocks, panels and
// tiles are independent tasks for the threads, and no sum depends on who does them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "core/status.h"
#include "prune/expert_weights.h"
#include "prune/panel_kernels.h"

namespace espalier {

// Row-major [rows, cols]; one byte of `kept` for each weight.
struct TrainedMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  float rate = 0;                           // what this matrix multiplies the learning rate with
  std::vector<float> weight, mean, square;  // the latter two, Adam's, once it is stepped
  std::vector<uint8_t> kept;

  // Weights that are zero are not kept.
  TrainedMatrix(int64_t rows, int64_t cols, float rate, std::vector<float> weight);
  // Fixes it at zero.
  void drop(size_t i);
};

// How much a change of a weight changes the output, factored: √(input · output) of its column and row, where both are
// sums over tokens. For gate and up this drops how the two go together; for down it is exact.
struct Sensitivity {
  std::vector<double> input;       // Σ x_j², [hidden]
  std::vector<double> gate, up;    // Σ (g · ∂a_i/∂(row i of gate x, up x))², [width]
  std::vector<double> activation;  // Σ (g·a_i)², [width]
  double tokens = 0;

  Sensitivity(int64_t hidden, int64_t width) : input(hidden), gate(width), up(width), activation(width) {}
};

class ExpertTrainer {
 public:
  // Indexed by Role; gate and up [width, hidden], down [hidden, width].
  using Matrices = std::array<TrainedMatrix, kRoles.size()>;

  ExpertTrainer(Matrices matrices);  // NOLINT(google-explicit-constructor)

  Matrices& matrices() { return matrices_; }
  const Matrices& matrices() const { return matrices_; }
  int64_t hidden() const { return matrices_[0].cols; }
  int64_t width() const { return matrices_[0].rows; }

  // Makes room for a batch; kOutOfMemory.
  Status begin_batch(int64_t rows);
  int64_t blocks() const { return panel_count_of(rows_); }

  // Packs the weights as they are now, task by task, before a batch's blocks go forward.
  int64_t pack_tasks() const {
    return 2 * panel_count_of(width()) + panel_count_of(hidden()) + panel_count_of(width());
  }
  void pack(int64_t task);

  // x and y: one pointer for each row of the block, to `hidden` floats.
  void forward(int64_t block, const float* const* x, float* const* y);
  // `gradient`: of each row's output before the gate, which is multiplied on here.
  void backward(int64_t block, const float* const* gradient, const float* gates);
  // For a block that went forward: adds to `sums`, [hidden + 3·width] in the order of Sensitivity.
  void measure(int64_t block, const float* gates, double* sums) const;

  // Before the first step.
  void make_moments();
  // Steps the weights by the gradients of all blocks that went backward, task by task.
  int64_t step_tasks() const { return 3 * panel_count_of(width()) * panel_count_of(hidden()); }
  void step(int64_t task, const AdamStep& adam);

 private:
  static int64_t panel_count_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
  int64_t rows_in(int64_t block) const { return std::min(kPanel, rows_ - block * kPanel); }
  // The rows of a block within one of the panels that the gradients are summed from.
  float* panel_rows(AlignedBuffer<float>& panels, int64_t panel, int64_t block) {
    return panels.data() + (panel * blocks() + block) * kPanel * kPanel;
  }

  Matrices matrices_;
  AlignedBuffer<float> gate_panels_, up_panels_, down_panels_;  // [outputs / kPanel][inputs, kPanel]
  AlignedBuffer<float> down_back_;                              // [width / kPanel][hidden, kPanel]
  int64_t rows_ = 0;
  AlignedBuffer<float> gate_out_, up_out_;                         // [block][width, kPanel]
  AlignedBuffer<float> x_, y_gradient_;                            // [hidden / kPanel][rows, kPanel]
  AlignedBuffer<float> activation_, gate_gradient_, up_gradient_;  // [width / kPanel][rows, kPanel]
};

}  // namespace espalier
