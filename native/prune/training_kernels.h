// The loops over single elements that training an expert adds to the products of panel_kernels.h.
#pragma once

#include <cstdint>

namespace espalier {

// One step of Adam (Kingma & Ba 2015, algorithm 1), its bias corrections folded in:
//   mean += (1 - mean_decay) · (g - mean); square += (1 - square_decay) · (g² - square);
//   weight -= rate · mean / (√square + epsilon).
struct AdamStep {
  float mean_decay;
  float square_decay;
  float rate;     // learning rate · √(1 - square_decay^t) / (1 - mean_decay^t)
  float epsilon;  // times √(1 - square_decay^t)
};

struct TrainingKernels {
  // out[i] = silu(gate[i]) · up[i], silu(z) = z / (1 + e⁻ᶻ).
  void (*swiglu)(int64_t count, const float* gate, const float* up, float* out);
  // What a gradient of that output is for gate and up.
  void (*swiglu_backward)(int64_t count, const float* gate, const float* up, const float* gradient,
                          float* gate_gradient, float* up_gradient);
  // Weights whose byte in `kept` is 0 stay as they are; it is 1 for the others.
  void (*adam)(int64_t count, const AdamStep& step, const float* gradient, const uint8_t* kept, float* weight,
               float* mean, float* square);
  // Each column of values [rows, kPanel] becomes its softmax.
  void (*softmax_columns)(int64_t rows, float* values);
};

}  // namespace espalier
