// What the baseline instruction set of the target gives.
#include "sparse/tile_packer_plain.h"

namespace espalier {
namespace {

uint32_t nonzero16(Vu v) { return static_cast<uint32_t>(nonzero_lanes<uint16_t>(v)); }
uint64_t nonzero8(Vu v) { return nonzero_lanes<uint8_t>(v); }
Vu compress16(uint32_t mask, Vu v) { return compress_lanes<uint16_t>(0, mask, v); }
Vu compress8(uint8_t fill, uint64_t mask, Vu v) { return compress_lanes<uint8_t>(fill, mask, v); }

Vf round_to_f16(Vf v) {
  for (int r = 0; r < 16; ++r) v[r] = f16_to_float(float_to_f16(v[r]));
  return v;
}
void store_f16(uint16_t* out, Vf v) {
  for (int r = 0; r < 16; ++r) out[r] = float_to_f16(v[r]);
}

}  // namespace
}  // namespace espalier

#include "sparse/tile_packer_inl.h"

namespace espalier {

const TilePacker* scalar_tile_packer() { return &kTilePacker; }

}  // namespace espalier
