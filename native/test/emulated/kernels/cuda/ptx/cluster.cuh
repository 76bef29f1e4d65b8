#pragma once

#include "emulated/barriers.h"
#include "emulated/tensor_map.h"

namespace espalier::cuda::ptx {

inline uint32_t cluster_rank() { return emulated::block().rank; }
inline void cluster_barrier() { emulated::cluster_barrier(); }
inline uint32_t address_in(uint32_t address, uint32_t rank) {
  return (address & ((1u << emulated::kAddressBits) - 1)) | (rank + 1) << emulated::kAddressBits;
}
inline float4 load_cluster_16(uint32_t from, bool exists) {
  return exists ? emulated::load_shared<float4>(from) : float4{};
}
inline void barrier_arrive_there(uint32_t barrier) { emulated::transfer_arrive(barrier); }
inline void prefetch_tensor(const void*) {}

inline void tensor_load(uint32_t to, const void* tensor, int x, int y, int z, uint32_t barrier) {
  emulated::tensor_load(1u << emulated::block().rank, to, tensor, {x, y, z}, barrier);
}
inline void tensor_load(uint32_t to, const void* tensor, int x, int y, int z, int w, uint32_t barrier) {
  emulated::tensor_load(1u << emulated::block().rank, to, tensor, {x, y, z, w}, barrier);
}
inline void tensor_load_to(uint16_t blocks, uint32_t to, const void* tensor, int x, int y, int z, uint32_t barrier) {
  emulated::tensor_load(blocks, to, tensor, {x, y, z}, barrier);
}

}  // namespace espalier::cuda::ptx
