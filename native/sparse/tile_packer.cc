#include "sparse/tile_packer.h"

namespace espalier {

const TilePacker* scalar_tile_packer();
const TilePacker* avx2_tile_packer();
const TilePacker* avx512_tile_packer();

const TilePacker* tile_packer(Isa isa) {
  if (isa > cpu_features().best) return nullptr;
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return avx512_tile_packer();
  if (isa == Isa::kAvx2) return avx2_tile_packer();
#endif
  return isa == Isa::kScalar ? scalar_tile_packer() : nullptr;
}

const TilePacker& tile_packer() {
  static const TilePacker* const selected = tile_packer(cpu_features().selected);
  // What has no set of its own packs with the plain one.
  static const TilePacker& found = selected != nullptr ? *selected : *scalar_tile_packer();
  return found;
}

}  // namespace espalier
