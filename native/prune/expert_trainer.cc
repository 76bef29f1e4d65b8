#include "prune/expert_trainer.h"

#include <algorithm>

#include "prune/panels.h"

namespace espalier {
namespace {

constexpr int64_t kTile = kPanel * kPanel;
constexpr auto kGate = static_cast<size_t>(Role::kGate);
constexpr auto kUp = static_cast<size_t>(Role::kUp);
constexpr auto kDown = static_cast<size_t>(Role::kDown);

// product[i, j] = Σ_k panels[k, i] · right[k, j], where the panels hold `columns` columns of i.
void product(int64_t depth, const float* panels, int64_t columns, const float* right, float* out) {
  std::fill(out, out + columns * kPanel, 0.0f);
  const PanelKernels<float>& kernels = panel_kernels().f32;
  for (int64_t p = 0; p < panel_count(columns); ++p) {
    update_tile(kernels, depth, panels + p * depth * kPanel, right, 1.0f, out + p * kTile, kPanel,
                panel_width(columns, p), kPanel);
  }
}

// out[t, f] = source[f, t] for the features of one panel; features that do not exist are zero.
void transpose_block(const float* source, int64_t features, float* out) {
  for (int64_t t0 = 0; t0 < kPanel; t0 += 16) {
    for (int64_t f = 0; f < features; ++f) {
      for (int64_t t = t0; t < t0 + 16; ++t) out[t * kPanel + f] = source[f * kPanel + t];
    }
  }
  if (features == kPanel) return;
  for (int64_t t = 0; t < kPanel; ++t) std::fill(out + t * kPanel + features, out + (t + 1) * kPanel, 0.0f);
}

}  // namespace

TrainedMatrix::TrainedMatrix(int64_t row_count, int64_t col_count, float own_rate, std::vector<float> values)
    : rows(row_count), cols(col_count), rate(own_rate), weight(std::move(values)) {
  kept.resize(weight.size());
  std::transform(weight.begin(), weight.end(), kept.begin(), [](float w) { return w != 0.0f ? 1 : 0; });
}

void TrainedMatrix::drop(size_t i) {
  weight[i] = 0;
  kept[i] = 0;
  if (!mean.empty()) mean[i] = square[i] = 0;
}

ExpertTrainer::ExpertTrainer(Matrices matrices) : matrices_(std::move(matrices)) {}

Status ExpertTrainer::begin_batch(int64_t rows) {
  rows_ = rows;
  const int64_t across_width = panel_count(width());
  const int64_t across_hidden = panel_count(hidden());
  const auto ensure = [](AlignedBuffer<float>& buffer, int64_t size) {
    buffer.ensure(static_cast<size_t>(size));
    return buffer.size() >= static_cast<size_t>(size);
  };
  bool fits =
      ensure(gate_panels_, across_width * hidden() * kPanel) && ensure(up_panels_, across_width * hidden() * kPanel) &&
      ensure(down_back_, across_width * hidden() * kPanel) && ensure(down_panels_, across_hidden * width() * kPanel);
  for (AlignedBuffer<float>* buffer : {&gate_out_, &up_out_}) {
    fits = fits && ensure(*buffer, blocks() * width() * kPanel);
  }
  for (AlignedBuffer<float>* buffer : {&x_, &y_gradient_})
    fits = fits && ensure(*buffer, across_hidden * blocks() * kTile);
  for (AlignedBuffer<float>* buffer : {&activation_, &gate_gradient_, &up_gradient_}) {
    fits = fits && ensure(*buffer, across_width * blocks() * kTile);
  }
  return fits ? Status::ok() : Status(Code::kOutOfMemory, "no memory to train an expert: use a smaller batch");
}

void ExpertTrainer::pack(int64_t task) {
  const int64_t across_width = panel_count(width());
  const auto pack_rows = [](const TrainedMatrix& matrix, int64_t panel, AlignedBuffer<float>& out) {
    pack_transposed(matrix.weight.data() + panel * kPanel * matrix.cols, matrix.cols, panel_width(matrix.rows, panel),
                    matrix.cols, out.data() + panel * matrix.cols * kPanel);
  };
  if (task < across_width) return pack_rows(matrices_[kGate], task, gate_panels_);
  task -= across_width;
  if (task < across_width) return pack_rows(matrices_[kUp], task, up_panels_);
  task -= across_width;
  const TrainedMatrix& down = matrices_[kDown];
  if (task < panel_count(hidden())) return pack_rows(down, task, down_panels_);
  task -= panel_count(hidden());
  float* out = down_back_.data() + task * hidden() * kPanel;
  const int64_t columns = panel_width(width(), task);
  for (int64_t k = 0; k < hidden(); ++k) {
    const float* row = down.weight.data() + k * down.cols + task * kPanel;
    std::copy(row, row + columns, out + k * kPanel);
    std::fill(out + k * kPanel + columns, out + (k + 1) * kPanel, 0.0f);
  }
}

void ExpertTrainer::forward(int64_t block, const float* const* x, float* const* y) {
  const int64_t rows = rows_in(block);
  AlignedBuffer<float> scratch(static_cast<size_t>((hidden() + width()) * kPanel));
  float* columns = scratch.data();
  float* activation = columns + hidden() * kPanel;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t k = 0; k < hidden(); ++k) columns[k * kPanel + t] = x[t][k];
  }
  for (int64_t p = 0; p < panel_count(hidden()); ++p) {
    float* out = panel_rows(x_, p, block);
    const int64_t features = panel_width(hidden(), p);
    std::fill(out, out + kTile, 0.0f);
    for (int64_t t = 0; t < rows; ++t) std::copy(x[t] + p * kPanel, x[t] + p * kPanel + features, out + t * kPanel);
  }
  float* gate = gate_out_.data() + block * width() * kPanel;
  float* up = up_out_.data() + block * width() * kPanel;
  product(hidden(), gate_panels_.data(), width(), columns, gate);
  product(hidden(), up_panels_.data(), width(), columns, up);
  panel_kernels().training.swiglu(width() * kPanel, gate, up, activation);
  for (int64_t p = 0; p < panel_count(width()); ++p) {
    transpose_block(activation + p * kTile, panel_width(width(), p), panel_rows(activation_, p, block));
  }
  product(width(), down_panels_.data(), hidden(), activation, columns);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t k = 0; k < hidden(); ++k) y[t][k] = columns[k * kPanel + t];
  }
}

void ExpertTrainer::backward(int64_t block, const float* const* gradient, const float* gates) {
  const int64_t rows = rows_in(block);
  AlignedBuffer<float> scratch(static_cast<size_t>((hidden() + 3 * width()) * kPanel));
  float* columns = scratch.data();
  float* activation = columns + hidden() * kPanel;
  float* gate = activation + width() * kPanel;
  float* up = gate + width() * kPanel;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t k = 0; k < hidden(); ++k) columns[k * kPanel + t] = gates[t] * gradient[t][k];
  }
  for (int64_t p = 0; p < panel_count(hidden()); ++p) {
    transpose_block(columns + p * kTile, panel_width(hidden(), p), panel_rows(y_gradient_, p, block));
  }
  product(hidden(), down_back_.data(), width(), columns, activation);
  const int64_t first = block * width() * kPanel;
  panel_kernels().training.swiglu_backward(width() * kPanel, gate_out_.data() + first, up_out_.data() + first,
                                           activation, gate, up);
  for (int64_t p = 0; p < panel_count(width()); ++p) {
    transpose_block(gate + p * kTile, panel_width(width(), p), panel_rows(gate_gradient_, p, block));
    transpose_block(up + p * kTile, panel_width(width(), p), panel_rows(up_gradient_, p, block));
  }
}

void ExpertTrainer::measure(int64_t block, const float* gates, double* sums) const {
  const int64_t rows = rows_in(block);
  AlignedBuffer<float> scratch(static_cast<size_t>(3 * width() * kPanel));
  float* ones = scratch.data();
  float* gate = ones + width() * kPanel;
  float* up = gate + width() * kPanel;
  for (int64_t i = 0; i < width(); ++i) std::copy(gates, gates + rows, ones + i * kPanel);
  const float* up_out = up_out_.data() + block * width() * kPanel;
  panel_kernels().training.swiglu_backward(width() * kPanel, gate_out_.data() + block * width() * kPanel, up_out, ones,
                                           gate, up);
  for (int64_t k = 0; k < hidden(); ++k) {
    const float* x = x_.data() + ((k / kPanel) * blocks() + block) * kTile + k % kPanel;
    for (int64_t t = 0; t < rows; ++t) sums[k] += static_cast<double>(x[t * kPanel]) * x[t * kPanel];
  }
  double* out = sums + hidden();
  for (int64_t i = 0; i < width(); ++i) {
    for (int64_t t = 0; t < rows; ++t) {
      const int64_t at = i * kPanel + t;
      const double activation = static_cast<double>(up[at]) * up_out[at];
      out[i] += static_cast<double>(gate[at]) * gate[at];
      out[width() + i] += static_cast<double>(up[at]) * up[at];
      out[2 * width() + i] += activation * activation;
    }
  }
}

void ExpertTrainer::make_moments() {
  for (TrainedMatrix& matrix : matrices_) {
    matrix.mean.resize(matrix.weight.size());
    matrix.square.resize(matrix.weight.size());
  }
}

void ExpertTrainer::step(int64_t task, const AdamStep& adam) {
  const int64_t across_hidden = panel_count(hidden());
  const int64_t tiles = panel_count(width()) * across_hidden;
  const auto role = static_cast<size_t>(task / tiles);
  TrainedMatrix& matrix = matrices_[role];
  const int64_t across = panel_count(matrix.cols);
  const int64_t i = task % tiles / across;
  const int64_t j = task % tiles % across;
  AlignedBuffer<float>& left = role == kGate ? gate_gradient_ : role == kUp ? up_gradient_ : y_gradient_;
  AlignedBuffer<float>& right = role == kDown ? activation_ : x_;
  alignas(64) float gradient[kTile] = {};
  panel_kernels().f32.update(blocks() * kPanel, panel_rows(left, i, 0), panel_rows(right, j, 0), 1.0f, gradient,
                             kPanel);
  AdamStep own = adam;
  own.rate *= matrix.rate;
  const int64_t columns = panel_width(matrix.cols, j);
  for (int64_t r = 0; r < panel_width(matrix.rows, i); ++r) {
    const auto at = static_cast<size_t>((i * kPanel + r) * matrix.cols + j * kPanel);
    panel_kernels().training.adam(columns, own, gradient + r * kPanel, matrix.kept.data() + at,
                                  matrix.weight.data() + at, matrix.mean.data() + at, matrix.square.data() + at);
  }
}

}  // namespace espalier
