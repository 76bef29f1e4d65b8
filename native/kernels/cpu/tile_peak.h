// What the matrix units of this machine can do at most, measured: the ceiling that products of many tokens are held
// against.
#pragma once

#include "core/thread_pool.h"

namespace espalier {

// bf16 operations a second (a multiplication and an addition are two) of all threads of the pool on tiles that stay in
// their registers; the best of several rounds. 0 where there is no matrix unit.
double tile_peak(ThreadPool& pool);

}  // namespace espalier
