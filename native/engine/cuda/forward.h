// The launches of a step, and the memory between them.
#pragma once

#include <optional>
#include <span>

#include "engine/cuda/model.h"
#include "engine/cuda/one_row.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/dense_products.h"

namespace espalier::cuda {

// The rows of a step, in device memory.
struct StepRows {
  RowPlaces places;
  const int32_t* tokens = nullptr;
  // See AttendTask.
  int splits = 1;
  int split_chunks = 1;
  // See AttendRunsTask; none: rows are taken one by one.
  int runs = 0;
  const int32_t* run_firsts = nullptr;
  const int32_t* run_counts = nullptr;
};

// Rows of the hidden states whose logits are wanted.
struct LogitRows {
  int count = 0;  // at most kMostLogitRows
  const int32_t* rows = nullptr;
  const int32_t* targets = nullptr;  // [count], or nullptr where no scores are wanted
  bool wants_likeliest = false;
};

// Rows whose logits are computed together.
inline constexpr int kMostLogitRows = 64;

class Forward {
 public:
  // The model must outlive this. `wide`: whether the device has_wide_products().
  Forward(const Model& model, bool wide) : model_(model), wide_(wide) {}

  // Makes room for steps of so many rows. kOutOfMemory. What it frees must not be in use.
  Status reserve(int rows, int splits);
  // Bytes that steps of so many rows take.
  int64_t scratch_bytes(int rows, int splits);
  // Starts layer after layer: from tokens to hidden states where the model embeds, else from hidden states in
  // `hidden()`.
  Status run(const StepRows& rows, cudaStream_t stream);
  // Starts the head on rows of the hidden states: `logits()` [count][vocabulary], and `scores()` and `likeliest()`
  // [count] where they are wanted.
  Status run_head(const LogitRows& rows, cudaStream_t stream);

  // The residual stream, [rows][hidden].
  float* hidden() const { return hidden_.as<float>(); }
  float* logits() const { return logits_.as<float>(); }
  double* scores() const { return scores_.as<double>(); }
  int32_t* likeliest() const { return likeliest_.as<int32_t>(); }
  // Changes whenever `reserve` moved memory.
  int64_t moves() const { return moves_; }

 private:
  // How the rows of a step go through a part's products.
  struct Plan {
    int group_tokens = 1;
    int groups = 1;
    bool wide = false;
    int64_t slots() const { return static_cast<int64_t>(groups) * group_tokens; }
  };
  struct Need {
    DeviceMemory* memory;
    int64_t bytes;
  };
  std::vector<Need> needs(int rows, int splits);
  Plan plan(const FeedForwardPart& part, int rows) const;
  PartRows part_rows(const DeviceMemory& memory, int64_t width) const;
  Status norm(const float* weight, const NormTask& added, int rows, cudaStream_t stream);
  Status mix(const Layer& layer, const StepRows& rows, const PartRows& out, cudaStream_t stream);
  // `after` is the next matrix that is known before the router chooses.
  Status attention(const Layer& layer, const Matrices& after, const StepRows& rows, cudaStream_t stream);
  Status run_experts(const FeedForwardPart& part, const Plan& of_part, const PartRows& input,
                     const PartRows& activations, cudaStream_t stream);
  Status feed_forward(const FeedForwardPart& part, int rows, const float* next_norm, cudaStream_t stream);
  bool wants_dense(int rows) const;
  void find_dense(int rows);
  Status multiply(const Matrices& matrix, const PartRows& x, int rows, void* y, OutputType output, cudaStream_t stream,
                  const Matrices* next = nullptr);

  const Model& model_;
  bool wide_;
  OneRow one_row_;
  bool is_prepared_ = false;
  DeviceMemory hidden_, cosines_, sines_, input_, input_floats_;
  DeviceMemory qkv_, queries_, mixed_, partials_, output_;
  DeviceMemory router_logits_, experts_, gates_, slots_, group_experts_, inputs_, zeros_, unfinished_;
  DeviceMemory gathered_, activations_, down_;
  DeviceMemory last_, logits_, scores_, likeliest_;
  // From the first step on that has products for it, where cuBLASLt and memory for it are found.
  std::optional<DenseProducts> dense_;
  bool looked_for_dense_ = false;
  int64_t moves_ = 0;
};

}  // namespace espalier::cuda
