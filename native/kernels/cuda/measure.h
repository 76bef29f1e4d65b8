// How fast a device multiplies by matrices in its memory, and how fast it reads that. Plain C++.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "sparse/packed_matrix.h"

namespace espalier::cuda {

// Bytes a second of a plain read of a buffer of `bytes` bytes on the device: the median of passes that take at least
// 0.1 s together. From the size of the L2 cache on it is memory that is read. kUsage unless `bytes` is positive,
// kDevice, kOutOfMemory.
Result<double> read_ceiling(int device, int64_t bytes);

// Products to measure: of `count` matrices of one shape and of the same weights, each in memory of its own, one after
// the other.
struct ProductMeasure {
  Format format;  // dense, bitmap, 2:4 or n:32 of bf16, dense or 2:4 of int8
  int64_t rows = 0;
  int64_t cols = 0;
  double sparsity = 0;  // of bitmaps
  uint32_t seed = 0;
  int count = 1;
  std::vector<int> batches;  // tokens multiplied at once
  int parts = 2;             // of activations: 2 for float32, 1 for bf16
};

struct ProductTimes {
  int64_t bytes = 0;  // of one matrix, as packed
  // As read_ceiling, of the matrices themselves: the better of before and after the products.
  double ceiling = 0;
  struct Time {
    double seconds = 0;  // of one product, the median
    int samples = 0;     // each of all `count` matrices
  };
  std::vector<Time> times;  // one for each of `batches`
};

// The times of products that are started as one CUDA graph for all matrices, as steps of decode are; the kernels are
// those of launch_rows(), also where a step of very many tokens would expand weights first (dense_products.h). kUsage
// for a format without products on GPUs, kDevice, kOutOfMemory.
Result<ProductTimes> measure_products(ThreadPool& pool, int device, const ProductMeasure& measure);

}  // namespace espalier::cuda
