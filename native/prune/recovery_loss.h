// What recovery makes small: a measure of how far the output of a layer is from what the dense layer gives.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "core/status.h"
#include "prune/hidden_file.h"

namespace espalier {

// Of up to kPanel tokens at a time. `missing` [count, hidden] is what the experts' output lacks: dense minus trained.
// Both may be called from several threads at once.
class RecoveryLoss {
 public:
  virtual ~RecoveryLoss() = default;
  // Sum over the tokens.
  virtual Result<double> loss(const int64_t* tokens, int64_t count, const float* missing) const = 0;
  // Replaces `missing` by the derivative of loss() with respect to the trained output.
  virtual Status gradient(const int64_t* tokens, int64_t count, float* missing) const = 0;
};

// scale · Σ ‖missing‖².
class SquaredLoss final : public RecoveryLoss {
 public:
  SquaredLoss(int64_t hidden, double scale) : hidden_(hidden), scale_(scale) {}
  Result<double> loss(const int64_t* tokens, int64_t count, const float* missing) const override;
  Status gradient(const int64_t* tokens, int64_t count, float* missing) const override;

 private:
  int64_t hidden_;
  double scale_;
};

// Of a model's last layer: Σ KL(dense ‖ trained) of the next-token distributions, in nats.
class LogitsLoss final : public RecoveryLoss {
 public:
  // `dense_output`, a row for each token, is what the dense layer hands to the final norm; it must outlive this. `head`
  // is [vocabulary, norm.size()] row-major. kOutOfMemory.
  static Result<LogitsLoss> create(const HiddenFile& dense_output, std::vector<float> norm, float epsilon,
                                   const std::vector<float>& head);
  Result<double> loss(const int64_t* tokens, int64_t count, const float* missing) const override;
  Status gradient(const int64_t* tokens, int64_t count, float* missing) const override;

 private:
  // Next-token distributions of a block, and what it takes to go back from them; kPanel columns, one for each token.
  struct Block {
    AlignedBuffer<float> states;         // [count, hidden] before the norm
    std::vector<float> scales;           // 1 / root mean square
    AlignedBuffer<float> probabilities;  // [vocabulary, kPanel]
  };

  LogitsLoss(const HiddenFile& dense_output, std::vector<float> norm, float epsilon)
      : dense_output_(&dense_output), norm_(std::move(norm)), epsilon_(epsilon) {}
  int64_t hidden() const { return static_cast<int64_t>(norm_.size()); }
  Status read(const int64_t* tokens, int64_t count, Block& block) const;
  void predict(int64_t count, Block& block) const;
  // What the dense hidden states predict, and what those that lack `missing` do.
  Status predict_both(const int64_t* tokens, int64_t count, const float* missing, Block& dense, Block& trained) const;

  const HiddenFile* dense_output_;
  std::vector<float> norm_;
  float epsilon_;
  int64_t vocabulary_ = 0;
  AlignedBuffer<float> forward_panels_;   // [vocabulary / kPanel][hidden, kPanel]
  AlignedBuffer<float> backward_panels_;  // [hidden / kPanel][vocabulary, kPanel]
};

}  // namespace espalier
