// The inputs of products in the forms that kernels want them, one copy for all products that read the same x.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "core/scratch.h"
#include "core/thread_pool.h"
#include "kernels/cpu/kernels.h"

namespace espalier {

// How products with bf16 weights see their inputs. (int8 and int4 weights see int8 always, f32 weights float32.)
// kFloat32: as they are. kBf16: rounded to bf16, which matrix units multiply many times as fast; the sums are float32,
// and the same on every machine.
enum class Activations : uint8_t { kFloat32, kBf16 };

class Inputs {
 public:
  // What one product reads of a row of floats.
  struct Form {
    enum class Kind : uint8_t { kPlain, kRounded, kTiles, kQuantised };
    Kind kind = Kind::kPlain;
    const float* source = nullptr;  // whose copy this is
    int64_t tokens = 0;
    const float* x = nullptr;
    int64_t x_stride = 0;
    const uint16_t* tiles = nullptr;
    QuantisedRows quantised{};
  };

  Inputs(ThreadPool& pool, const CpuKernels& kernels, Activations activations);
  ~Inputs();
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;

  // Tokens that a product by these weights should take at a time, of `tokens`.
  int64_t chunk(const PackedMatrix& weights, int64_t tokens) const;
  // The form for a matrix of these weights; valid while this object lives.
  const Form& form(const PackedMatrix& weights, const float* x, int64_t x_stride, int64_t tokens);

 private:
  struct Memory {
    Form form;
    std::vector<float> scales;
    std::vector<int32_t> sums;
  };

  Form::Kind kind_for(Values values, int64_t tokens) const;
  void round(Memory& memory, int64_t cols);
  void tile(Memory& memory, int64_t cols);
  void quantise(Memory& memory, int64_t cols, int64_t groups);

  ThreadPool& pool_;
  const CpuKernels& kernels_;
  Activations activations_;
  Scratch::Mark start_;
  std::deque<Memory> memories_;  // stable addresses
};

}  // namespace espalier
