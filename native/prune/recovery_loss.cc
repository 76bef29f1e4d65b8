#include "prune/recovery_loss.h"

#include <algorithm>
#include <cmath>

#include "prune/panels.h"

namespace espalier {

Result<double> SquaredLoss::loss(const int64_t*, int64_t count, const float* missing) const {
  double sum = 0;
  for (int64_t i = 0; i < count * hidden_; ++i) sum += static_cast<double>(missing[i]) * missing[i];
  return scale_ * sum;
}

Status SquaredLoss::gradient(const int64_t*, int64_t count, float* missing) const {
  const auto factor = static_cast<float>(-2 * scale_);
  for (int64_t i = 0; i < count * hidden_; ++i) missing[i] *= factor;
  return Status::ok();
}

Result<LogitsLoss> LogitsLoss::create(const HiddenFile& dense_output, std::vector<float> norm, float epsilon,
                                      const std::vector<float>& head) {
  LogitsLoss made(dense_output, std::move(norm), epsilon);
  const int64_t hidden = made.hidden();
  const int64_t vocabulary = static_cast<int64_t>(head.size()) / hidden;
  made.vocabulary_ = vocabulary;
  made.forward_panels_.reset(static_cast<size_t>(panel_count(vocabulary) * hidden * kPanel));
  made.backward_panels_.reset(static_cast<size_t>(panel_count(hidden) * vocabulary * kPanel));
  if (made.forward_panels_.size() == 0 || made.backward_panels_.size() == 0) {
    return Status(Code::kOutOfMemory, "no memory for the output head: recover without logits");
  }
  for (int64_t p = 0; p < panel_count(vocabulary); ++p) {
    pack_transposed(head.data() + p * kPanel * hidden, hidden, panel_width(vocabulary, p), hidden,
                    made.forward_panels_.data() + p * hidden * kPanel);
  }
  for (int64_t p = 0; p < panel_count(hidden); ++p) {
    const int64_t columns = panel_width(hidden, p);
    float* panel = made.backward_panels_.data() + p * vocabulary * kPanel;
    for (int64_t v = 0; v < vocabulary; ++v) {
      const float* row = head.data() + v * hidden + p * kPanel;
      std::copy(row, row + columns, panel + v * kPanel);
    }
  }
  return made;
}

Status LogitsLoss::read(const int64_t* tokens, int64_t count, Block& block) const {
  block.states.reset(static_cast<size_t>(count * hidden()));
  block.probabilities.reset_uninitialised(static_cast<size_t>(panel_count(vocabulary_) * kPanel * kPanel));
  if (block.states.size() == 0 || block.probabilities.size() == 0) {
    return {Code::kOutOfMemory, "no memory for next-token distributions: recover without logits"};
  }
  for (int64_t t = 0; t < count; ++t) {
    ESPALIER_TRY(dense_output_->read(tokens[t], 1, block.states.data() + t * hidden()));
  }
  return Status::ok();
}

void LogitsLoss::predict(int64_t count, Block& block) const {
  AlignedBuffer<float> normed(static_cast<size_t>(hidden() * kPanel));
  block.scales.assign(static_cast<size_t>(count), 0.0f);
  for (int64_t t = 0; t < count; ++t) {
    const float* row = block.states.data() + t * hidden();
    double squares = 0;
    for (int64_t k = 0; k < hidden(); ++k) squares += static_cast<double>(row[k]) * row[k];
    const auto scale = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(hidden()) + epsilon_));
    block.scales[static_cast<size_t>(t)] = scale;
    for (int64_t k = 0; k < hidden(); ++k) {
      normed.data()[k * kPanel + t] = row[k] * scale * norm_[static_cast<size_t>(k)];
    }
  }
  float* logits = block.probabilities.data();
  std::fill(logits, logits + block.probabilities.size(), 0.0f);
  for (int64_t p = 0; p < panel_count(vocabulary_); ++p) {
    panel_kernels().f32.update(hidden(), forward_panels_.data() + p * hidden() * kPanel, normed.data(), 1.0f,
                               logits + p * kPanel * kPanel, kPanel);
  }
  panel_kernels().training.softmax_columns(vocabulary_, logits);
}

Status LogitsLoss::predict_both(const int64_t* tokens, int64_t count, const float* missing, Block& dense,
                                Block& trained) const {
  ESPALIER_TRY(read(tokens, count, dense));
  ESPALIER_TRY(read(tokens, count, trained));
  for (int64_t i = 0; i < count * hidden(); ++i) trained.states.data()[i] -= missing[i];
  predict(count, dense);
  predict(count, trained);
  return Status::ok();
}

Result<double> LogitsLoss::loss(const int64_t* tokens, int64_t count, const float* missing) const {
  Block dense;
  Block trained;
  ESPALIER_TRY(predict_both(tokens, count, missing, dense, trained));
  double sum = 0;
  constexpr float kLeast = 1e-30f;  // below it a term is nothing, and its logarithm may not exist
  for (int64_t v = 0; v < vocabulary_; ++v) {
    for (int64_t t = 0; t < count; ++t) {
      const float p = std::max(dense.probabilities[static_cast<size_t>(v * kPanel + t)], kLeast);
      const float q = std::max(trained.probabilities[static_cast<size_t>(v * kPanel + t)], kLeast);
      sum += static_cast<double>(p) * std::log(static_cast<double>(p) / q);
    }
  }
  return sum;
}

Status LogitsLoss::gradient(const int64_t* tokens, int64_t count, float* missing) const {
  Block dense;
  Block trained;
  ESPALIER_TRY(predict_both(tokens, count, missing, dense, trained));
  float* error = trained.probabilities.data();
  for (int64_t i = 0; i < vocabulary_ * kPanel; ++i) error[i] -= dense.probabilities[static_cast<size_t>(i)];
  AlignedBuffer<float> back(static_cast<size_t>(panel_count(hidden()) * kPanel * kPanel));
  for (int64_t p = 0; p < panel_count(hidden()); ++p) {
    panel_kernels().f32.update(vocabulary_, backward_panels_.data() + p * vocabulary_ * kPanel, error, 1.0f,
                               back.data() + p * kPanel * kPanel, kPanel);
  }
  // Back through x · scale · norm, whose scale depends on x.
  for (int64_t t = 0; t < count; ++t) {
    const float* x = trained.states.data() + t * hidden();
    const double scale = trained.scales[static_cast<size_t>(t)];
    double along = 0;
    const auto normed_gradient = [&](int64_t k) {
      return static_cast<double>(back[static_cast<size_t>(k * kPanel + t)]) * norm_[static_cast<size_t>(k)];
    };
    for (int64_t k = 0; k < hidden(); ++k) along += normed_gradient(k) * x[k];
    along *= scale * scale / static_cast<double>(hidden());
    for (int64_t k = 0; k < hidden(); ++k) {
      missing[t * hidden() + k] = static_cast<float>(scale * (normed_gradient(k) - along * x[k]));
    }
  }
  return Status::ok();
}

}  // namespace espalier
