// Copies between memory that the host works in and memory that the device copies from, by all threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/thread_pool.h"

namespace espalier::cuda {

inline void parallel_copy(ThreadPool& pool, const float* from, float* to, int64_t count) {
  constexpr int64_t kCopied = int64_t{1} << 20;
  pool.parallel_for((count + kCopied - 1) / kCopied, 1, [&](int64_t begin, int64_t end) {
    std::copy(from + begin * kCopied, from + std::min(count, end * kCopied), to + begin * kCopied);
  });
}

}  // namespace espalier::cuda
