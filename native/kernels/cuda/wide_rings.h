// How a product of many tokens shares out its shared memory: how many tiles of weights and blocks of x are under way.
#pragma once

#include <algorithm>

namespace espalier::cuda {

inline constexpr int kMostRingStages = 16;

// Of a kernel and its weights.
struct RingSizes {
  int x_bytes = 0;       // of a block of x: 64 inputs of one part
  int weight_bytes = 0;  // of a stage of weights
  int parts = 1;
  // Weights come as blocks of 64 inputs, like x, not as tiles of 128.
  bool by_rows = false;
  // The next tile is loaded while the one before is multiplied, whose blocks of x are let go of one by one. Else a tile
  // is let go of before the next one is loaded, and its blocks of x together.
  bool loads_ahead = false;

  // Blocks of x that a warp needs at the same time: with fewer it would wait for ever.
  int least_blocks() const { return loads_ahead && !by_rows ? 2 : 2 * parts; }
  int least_stages() const { return loads_ahead || by_rows ? 2 : 1; }
};

struct Rings {
  int stages = 0;    // of weights
  int x_stages = 0;  // 0: too little memory
};

// The rings that `room` bytes hold, as deep as each other in inputs where that is enough.
inline Rings choose_rings(const RingSizes& sizes, int room) {
  const int x_each = (sizes.by_rows ? 1 : 2) * sizes.x_bytes * sizes.parts;
  Rings rings;
  rings.stages = std::clamp(room / (sizes.weight_bytes + x_each), sizes.least_stages(), kMostRingStages);
  if (rings.stages == 1 && room >= 2 * sizes.weight_bytes + sizes.least_blocks() * sizes.x_bytes) rings.stages = 2;
  rings.x_stages = std::min((room - rings.stages * sizes.weight_bytes) / sizes.x_bytes, kMostRingStages);
  // Where a third tile takes nothing from x.
  if (rings.stages == 2 && room - rings.x_stages * sizes.x_bytes >= 3 * sizes.weight_bytes) rings.stages = 3;
  return rings.x_stages < sizes.least_blocks() ? Rings{} : rings;
}

}  // namespace espalier::cuda
