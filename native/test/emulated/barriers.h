// Barriers of threads, and those in shared memory that also count bytes.
#pragma once

#include "shared.h"

namespace emulated {

// Named barriers of a block; 0 is that of all its threads.
void named_barrier(int name, int threads);
void sync_threads();
void cluster_barrier();

void transfer_init(uint32_t barrier, uint32_t arrivals);
// Adds to the bytes that the phase waits for.
void transfer_expect(uint32_t barrier, uint32_t bytes);
void transfer_arrive(uint32_t barrier);
// Bytes have come, in whatever thread; `block` is the one whose barrier it is.
void transfer_complete(Block& block, uint32_t barrier, uint32_t bytes);
bool transfer_is_complete(uint32_t barrier, uint32_t parity);
void transfer_wait(uint32_t barrier, uint32_t parity);

}  // namespace emulated
