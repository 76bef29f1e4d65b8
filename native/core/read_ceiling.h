// The rate at which this machine reads memory: what no product whose weights come from memory can exceed.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/thread_pool.h"

namespace espalier {

inline constexpr int64_t kCacheLine = 64;

// kPrefetched: the widest vectors of this processor, prefetched as products prefetch their weights, which is the
// fastest read known here. kPlain: the same loads and nothing else.
enum class Reading { kPrefetched, kPlain };

// Reads `lines` cache lines, 64-byte aligned, once with all threads of the pool. Returns the exclusive or of all 64-bit
// words, which depends on every one of them.
uint64_t read_lines(ThreadPool& pool, const uint8_t* data, int64_t lines, Reading reading = Reading::kPrefetched);

// Bytes a second of read_lines over a buffer of `bytes` (rounded up to whole lines) in huge pages: the median of at
// least 15 passes that take at least 0.2 s together, after one that does not count. kUsage unless `bytes` is positive,
// kOutOfMemory.
Result<double> read_ceiling(ThreadPool& pool, int64_t bytes, Reading reading = Reading::kPrefetched);

}  // namespace espalier
