#pragma once

#include "emulated/matrices.h"
#include "emulated/tensor_map.h"

namespace espalier::cuda::ptx {

inline void store_matrices_turned(uint32_t to, const uint32_t (&from)[4]) { emulated::store_matrices_turned(to, from); }
inline void tensor_store(const void* tensor, int x, int y, int z, int w, uint32_t from) {
  emulated::tensor_store(tensor, {x, y, z, w}, from);
}
inline void bulk_commit() { emulated::current().copies.emplace_back(); }
inline void bulk_wait_read() { emulated::finish_but(emulated::current().copies, 0); }
inline void bulk_wait() { emulated::finish_but(emulated::current().copies, 0); }

}  // namespace espalier::cuda::ptx
