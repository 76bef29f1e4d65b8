#include "engine/batch.h"

#include <cmath>

namespace espalier {

RopeRows RopeRows::compute(const RopeSpec& rope, const Batch& batch) {
  RopeRows rows;
  rows.half = static_cast<int64_t>(rope.inverse_frequencies.size());
  rows.cosines.resize(static_cast<size_t>(batch.rows * rows.half));
  rows.sines.resize(rows.cosines.size());
  for (const Slice& slice : batch.slices) {
    for (int64_t i = 0; i < slice.count; ++i) {
      const auto at = static_cast<size_t>((slice.first_row + i) * rows.half);
      const auto position = static_cast<float>(slice.position + i);
      for (size_t f = 0; f < rope.inverse_frequencies.size(); ++f) {
        const float angle = position * rope.inverse_frequencies[f];
        rows.cosines[at + f] = std::cos(angle) * rope.scale;
        rows.sines[at + f] = std::sin(angle) * rope.scale;
      }
    }
  }
  return rows;
}

bool KvLayer::allocate(int64_t blocks, int kv_heads, int head_dim, KvType type) {
  type_ = type;
  head_bytes_ = kv_block_bytes(type, head_dim);
  block_bytes_ = head_bytes_ * kv_heads;
  // Not zeroed: pages come into being as sequences grow, and nothing stale is ever used.
  memory_.reset_uninitialised(static_cast<size_t>(2 * blocks * block_bytes_));
  return memory_.data() != nullptr;
}

}  // namespace espalier
