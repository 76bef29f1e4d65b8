// How far experts lie from the mean of their cluster (STUN, arXiv 2409.06211, section 4: the representative of a
// cluster is the member nearest to it).
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "engine/spec.h"

namespace espalier {

// For each cluster (indices into `experts`) the squared Euclidean distance of each member's [gate; up; down] from the
// mean of the members'. Matrices of a cluster must have equal shapes and must not be packed. Reads the weights of
// clusters with more than one member once, in pieces; those of the others (distance 0) not at all. The sums are the
// same for any number of threads. kAborted; what reading a weight can return.
Result<std::vector<std::vector<double>>> distances_to_means(ThreadPool& pool, const std::vector<MlpSpec>& experts,
                                                            const std::vector<std::vector<int32_t>>& clusters,
                                                            const std::atomic<bool>* cancel);

}  // namespace espalier
