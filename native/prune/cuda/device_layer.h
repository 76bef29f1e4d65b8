// The weights of one decoder layer in device memory, for products of many rows.
#pragma once

#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/calibration.h"
#include "kernels/cuda/memory.h"
#include "prune/layer_runner.h"

namespace espalier::cuda {

// [rows][parts][part_stride(cols)] in bf16.
struct DeviceMatrix {
  DeviceMemory memory;
  int64_t rows = 0;
  int64_t cols = 0;
  int parts = 1;
};

struct DeviceMlp {
  DeviceMatrix gate, up;  // [width of the widest expert][hidden], zeros behind its own
  DeviceMatrix down;      // [hidden][width of the widest expert], likewise
};

struct DevicePart {
  DeviceMatrix router;  // or the output gate of a dense part; no rows where there is none
  std::vector<DeviceMlp> experts;
  int64_t width = 0;  // of the widest

  int64_t count() const { return static_cast<int64_t>(experts.size()); }
};

struct DeviceLayer {
  DeviceMemory attention_norm, feed_forward_norm;  // [hidden]
  HeadShape heads;
  DeviceMatrix qkv;  // rows of Wq, Wk, Wv
  DeviceMatrix output;
  DeviceMemory qkv_bias, output_bias, q_norm, k_norm;  // empty where there are none
  std::vector<DevicePart> feed_forward;

  int64_t qkv_width() const { return static_cast<int64_t>(heads.heads + 2 * heads.kv_heads) * heads.head_dim; }
  int64_t query_width() const { return static_cast<int64_t>(heads.heads) * heads.head_dim; }
};

// Copies a layer to the current device, through memory that it keeps for the next time.
class LayerUploader {
 public:
  explicit LayerUploader(cudaStream_t stream) : stream_(stream) {}

  // All but the feed-forward. kUsage for heads and norms that the kernels do not take, kOutOfMemory, and what reading
  // weights gives.
  Status attention(const RunnableLayer& layer, DeviceLayer& out);
  // As the layer runs now.
  Status feed_forward(const RunnableLayer& layer, DeviceLayer& out);

 private:
  Status mlp(ThreadPool& pool, const Mlp& from, int64_t width, DeviceMlp& out);
  // The matrix as it is, but with `rows` rows and `cols` columns.
  Status linear(ThreadPool& pool, const Linear& from, int64_t rows, int64_t cols, DeviceMatrix& out);
  // Room for floats to be uploaded.
  Result<float*> host(int64_t floats);
  // Row-major floats [rows][cols] of host() as the first rows of out; out.rows, cols and parts are set.
  Status upload(int64_t rows, int64_t cols, DeviceMatrix& out);

  cudaStream_t stream_;
  PinnedMemory host_;
  DeviceMemory floats_;
};

}  // namespace espalier::cuda
