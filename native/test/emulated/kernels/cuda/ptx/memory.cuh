#pragma once

#include "emulated/barriers.h"

namespace espalier::cuda::ptx {

inline uint64_t read_once_policy() { return 0; }
inline uint64_t read_again_policy() { return 0; }

inline void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint64_t) {
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) emulated::fault("a bulk copy of unaligned bytes");
  emulated::Block& block = emulated::block_of(to);
  uint8_t* const place = emulated::shared_at(block, to, bytes, 16);
  emulated::do_sometime([&block, place, from, bytes, barrier] {
    std::memcpy(place, from, bytes);
    emulated::transfer_complete(block, barrier, bytes);
  });
}

inline void prefetch_to_cache(const void* from, uint32_t bytes) {
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) emulated::fault("a prefetch of unaligned bytes");
}
inline void copy_engine_fence() {}
inline void copy_engine_global_fence() {}

inline uint32_t load_shared(uint32_t from) { return emulated::load_shared<uint32_t>(from); }
inline uint2 load_shared_8(uint32_t from) { return emulated::load_shared<uint2>(from); }
inline uint4 load_shared_16(uint32_t from) { return emulated::load_shared<uint4>(from); }
inline float4 load_shared_floats(uint32_t from) { return emulated::load_shared<float4>(from); }
inline void store_shared(uint32_t to, uint32_t value) { emulated::store_shared(to, value); }
inline void store_shared(uint32_t to, float value) { emulated::store_shared(to, value); }
inline void store_shared_8(uint32_t to, uint2 value) { emulated::store_shared(to, value); }
inline void store_shared_16(uint32_t to, uint4 value) { emulated::store_shared(to, value); }
inline void store_shared_16(uint32_t to, float4 value) { emulated::store_shared(to, value); }

// What is polled lets others go on first.
inline void store_release(uint32_t to, uint2 value) { emulated::store_shared(to, value); }
inline uint2 load_acquire(uint32_t from) {
  emulated::pause();
  return emulated::load_shared<uint2>(from);
}
inline void store_release_device(uint32_t* to, uint32_t value) {
  *to = value;
  emulated::note_progress();
}
inline void store_relaxed_device(uint32_t* to, uint32_t value) { store_release_device(to, value); }
inline uint32_t load_acquire_device(const uint32_t* from) {
  emulated::pause();
  return *from;
}
inline uint32_t load_relaxed_device(const uint32_t* from) { return load_acquire_device(from); }
inline uint2 load_relaxed_device_8(const uint32_t* from) {
  emulated::pause();
  return {from[0], from[1]};
}
inline uint4 load_relaxed_device_16(const uint32_t* from) {
  emulated::pause();
  return {from[0], from[1], from[2], from[3]};
}

}  // namespace espalier::cuda::ptx
