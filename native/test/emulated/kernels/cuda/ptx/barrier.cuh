#pragma once

#include "emulated/barriers.h"

namespace espalier::cuda::ptx {

inline uint32_t shared_address(const void* pointer) { return emulated::shared_address(pointer); }
inline void barrier_init(uint32_t barrier, uint32_t arrivals) { emulated::transfer_init(barrier, arrivals); }
inline void barrier_init_fence() {}
inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
  emulated::transfer_expect(barrier, bytes);
  emulated::transfer_arrive(barrier);
}
inline void barrier_expect_more(uint32_t barrier, uint32_t bytes) { emulated::transfer_expect(barrier, bytes); }
inline void barrier_arrive(uint32_t barrier) { emulated::transfer_arrive(barrier); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) { emulated::transfer_wait(barrier, parity); }
inline bool barrier_is_complete(uint32_t barrier, uint32_t parity) {
  const bool is_complete = emulated::transfer_is_complete(barrier, parity);
  if (!is_complete) emulated::pause();
  return is_complete;
}
inline void named_barrier(int name, int threads) { emulated::named_barrier(name, threads); }

}  // namespace espalier::cuda::ptx
