#include "engine/cuda/one_row.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/product_launch.h"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {
namespace {

DecodeProduct describe(const DeviceTiles& tiles) {
  DecodeProduct product;
  product.layout = tiles.layout;
  product.n = tiles.n;
  product.rows = static_cast<int>(tiles.rows);
  product.row_tiles = static_cast<int>((tiles.rows + kTileHeight - 1) / kTileHeight);
  product.col_tiles = static_cast<int>((tiles.cols + kTileWidth - 1) / kTileWidth);
  return product;
}

template <class T>
const T* pointer(const DeviceMemory& memory) {
  return memory.bytes() > 0 ? memory.as<T>() : nullptr;
}

RouteTask describe(const FeedForwardPart& part) {
  RouteTask task;
  task.tokens = 1;
  task.rows = part.router_rows;
  task.top_k = part.routing.top_k;
  task.renormalise = part.routing.renormalise;
  task.sigmoid = part.routing.scoring == Scoring::kSigmoid;
  task.groups = part.routing.n_group;
  task.top_groups = part.routing.topk_group;
  task.scaling = part.routing.routed_scaling_factor;
  return task;
}

bool same(const RouteTask& a, const RouteTask& b) {
  return a.rows == b.rows && a.top_k == b.top_k && a.renormalise == b.renormalise && a.sigmoid == b.sigmoid &&
         a.groups == b.groups && a.top_groups == b.top_groups && a.scaling == b.scaling;
}

bool same(const DecodeProduct& a, const DecodeProduct& b) {
  return a.layout == b.layout && a.n == b.n && a.rows == b.rows && a.col_tiles == b.col_tiles;
}

bool same(const HeadShape& a, const HeadShape& b) {
  return a.heads == b.heads && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim;
}

DecodeLayer describe(const Layer& layer) {
  const FeedForwardPart& part = layer.feed_forward.front();
  const auto is_whole = [&](const DeviceMemory& norm) {
    return norm.bytes() != layer.heads.head_dim * static_cast<int64_t>(sizeof(float));
  };
  DecodeLayer out{};
  out.tiles[kQkv] = layer.qkv.view.tiles;
  out.tiles[kOutput] = layer.output.view.tiles;
  out.tiles[kGateUp] = part.gate_up.view.tiles;
  out.tiles[kDown] = part.down.view.tiles;
  out.attention_norm = layer.attention_norm.as<float>();
  out.feed_forward_norm = layer.feed_forward_norm.as<float>();
  out.qkv_bias = pointer<float>(layer.qkv_bias);
  out.output_bias = pointer<float>(layer.output_bias);
  out.q_norm = pointer<float>(layer.q_norm);
  out.k_norm = pointer<float>(layer.k_norm);
  out.q_norm_whole = is_whole(layer.q_norm);
  out.k_norm_whole = is_whole(layer.k_norm);
  out.scale = layer.scale;
  out.clip = layer.clip;
  out.keys = layer.keys.data();
  out.values = layer.values.data();
  out.router = part.router.memory.data();
  out.correction_bias = pointer<float>(part.correction_bias);
  out.skip_below = pointer<float>(part.skip_below);
  out.expert_of_row = part.expert_of_row.as<int32_t>();
  return out;
}

// The task of a model all of whose layers are alike, and routed.
bool describe(const Model& model, DecodeTask& task) {
  task.layers = static_cast<int>(model.layers.size());
  task.hidden = model.hidden;
  task.parts = model.parts;
  task.epsilon = model.norm_epsilon;
  task.kv_is_bf16 = model.kv_is_bf16;
  for (const Layer& layer : model.layers) {
    if (layer.feed_forward.size() != 1) return false;
    const FeedForwardPart& part = layer.feed_forward.front();
    if (!part.is_routed || part.router_rows == 0 || 2 * model.rope_half != layer.heads.head_dim) return false;
    const DecodeProduct products[kDecodeProducts] = {describe(layer.qkv.view), describe(layer.output.view),
                                                     describe(part.gate_up.view), describe(part.down.view)};
    if (&layer == &model.layers.front()) {
      std::copy(std::begin(products), std::end(products), task.products);
      task.heads = layer.heads;
      task.window = layer.window;
      task.routing = describe(part);
      task.router_is_bf16 = part.router.is_bf16;
    }
    for (int kind = 0; kind < kDecodeProducts; ++kind) {
      if (!same(products[kind], task.products[kind])) return false;
    }
    if (!same(layer.heads, task.heads) || layer.window != task.window || !same(describe(part), task.routing))
      return false;
    if (part.router.is_bf16 != task.router_is_bf16) return false;
  }
  return true;
}

}  // namespace

Status OneRow::prepare(const Model& model) {
  const Result<DeviceLimits> limits = current_limits();
  if (!limits.is_ok()) return limits.status();
  if (!describe(model, task_) || !plan_decode(task_)) return Status::ok();
  std::vector<DecodeLayer> layers;
  for (const Layer& layer : model.layers) layers.push_back(describe(layer));
  Result<DeviceMemory> copied =
      DeviceMemory::copy_of(layers.data(), static_cast<int64_t>(layers.size() * sizeof(DecodeLayer)));
  if (!copied.is_ok()) return copied.status();
  layers_ = std::move(copied.value());
  task_.of_layers = layers_.as<DecodeLayer>();
  const int64_t bytes = decode_bytes(task_, limits.value().multiprocessors);
  Result<DeviceMemory> memory = DeviceMemory::allocate(bytes);
  if (!memory.is_ok()) return memory.status();
  ESPALIER_CUDA_TRY(cudaMemset(memory.value().data(), 0, static_cast<size_t>(bytes)));
  place_decode(task_, memory.value().data(), limits.value().multiprocessors);
  memory_ = std::move(memory.value());
  return Status::ok();
}

Status OneRow::run(const RowPlaces& places, const float* cosines, const float* sines, float* residual,
                   cudaStream_t stream) {
  task_.places = places;
  task_.cosines = cosines;
  task_.sines = sines;
  task_.residual = residual;
  return launch_decode(task_, stream);
}

}  // namespace espalier::cuda
