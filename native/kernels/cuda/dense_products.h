// Products of very many tokens by one matrix with zeros anywhere: the tiles are expanded once, where
// launch_wide_product expands them again for every 256 tokens. They are while the first rows are multiplied
// (launch_expanded_product), and cuBLASLt multiplies the others, if there are any. Of a matrix that is too large for
// that, bands of rows are expanded and multiplied in turns. Plain C++.
#pragma once

#include <cstdint>
#include <memory>

#include "core/status.h"
#include "kernels/cuda/product.h"

namespace espalier::cuda {

// What such products need beside their operands: the library, and memory that each overwrites, so that those of one
// object run one after the other.
class DenseProducts {
 public:
  // Room for the weights of a product, unless another is asked for; a larger matrix goes through it in bands of rows.
  static constexpr int64_t kRoomBytes = int64_t{128} << 20;

  // For the current device. kDevice where cuBLASLt is not found, which says where it was looked for; kOutOfMemory.
  static Result<DenseProducts> create(int64_t room_bytes = kRoomBytes);

  // Whether launch() takes a product: by one n:32 or bitmap matrix, in order (no `experts`, no `inputs`), to float32,
  // or to bf16 of one part.
  static bool takes(const Product& product);
  // Whether it also takes less time than launch_wide_product, with kRoomBytes: by its rows of bf16, tokens · parts.
  static bool is_faster(const Product& product);

  // Starts the product, with no memory but its own. Errors: kUsage for what it does not take, kDevice.
  Status launch(const Product& product, CUstream_st* stream);

  DenseProducts(DenseProducts&&) noexcept;
  DenseProducts& operator=(DenseProducts&&) noexcept;
  ~DenseProducts();

 private:
  struct State;
  explicit DenseProducts(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace espalier::cuda
