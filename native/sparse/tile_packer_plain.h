// Lane by lane what an instruction set has no instruction for.
#pragma once

#include "core/dtype.h"
#include "sparse/tile_vector.h"

namespace espalier {
namespace {

// Which of kLanes lanes of type T are not 0.
template <class T>
uint64_t nonzero_lanes(Vu v) {
  T lanes[64 / sizeof(T)];
  __builtin_memcpy(lanes, &v, sizeof lanes);
  uint64_t mask = 0;
  for (unsigned i = 0; i < 64 / sizeof(T); ++i) mask |= static_cast<uint64_t>(lanes[i] != 0) << i;
  return mask;
}

template <class T>
Vu compress_lanes(T fill, uint64_t mask, Vu v) {
  constexpr unsigned kLanes = 64 / sizeof(T);
  T lanes[kLanes];
  T kept[kLanes + 1];  // one more, because the place behind the last is written before it is known to be unused
  __builtin_memcpy(lanes, &v, sizeof lanes);
  unsigned count = 0;
  for (unsigned i = 0; i < kLanes; ++i) {
    kept[count] = lanes[i];
    count += mask >> i & 1u;
  }
  for (; count < kLanes; ++count) kept[count] = fill;
  __builtin_memcpy(&v, kept, sizeof v);
  return v;
}

}  // namespace
}  // namespace espalier
