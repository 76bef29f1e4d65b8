#pragma once

#include "emulated/matrices.h"

namespace espalier::cuda::ptx {

inline void async_copy_16(uint32_t to, const void* from, uint32_t bytes) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulated::fault("an asynchronous copy from an unaligned address");
  uint8_t* const place = emulated::shared_at(to, 16, 16);
  emulated::do_in_group(emulated::current().copies, [place, from, bytes] {
    std::memset(place, 0, 16);
    std::memcpy(place, from, bytes);
  });
}
inline void async_copy_cached_16(uint32_t to, const void* from, uint32_t bytes) { async_copy_16(to, from, bytes); }
inline void async_commit() { emulated::current().copies.emplace_back(); }
template <int kGroups>
void async_wait() {
  emulated::finish_but(emulated::current().copies, kGroups);
}

inline void load_matrices(uint32_t (&to)[4], uint32_t from) {
  const uint4 m = emulated::load_matrices(from, false);
  to[0] = m.x;
  to[1] = m.y;
  to[2] = m.z;
  to[3] = m.w;
}

}  // namespace espalier::cuda::ptx
