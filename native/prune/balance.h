// Who loses how much, where matrices meet an unstructured budget together.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"

namespace espalier {

// The sparsity of each of several matrices when all their weights compete under one threshold, so that the weight that
// each of them loses last costs the same: floor(sparsity · all) weights go in all, and ties. `scores(i)` gives those of
// matrix i, sizes[i] of them, none negative or NaN; it is asked several times, and the span is used before the next. No
// matrix loses more than halfway between `sparsity` and everything; what that spares, the others lose.
Result<std::vector<double>> balanced_sparsities(ThreadPool& pool, double sparsity, const std::vector<int64_t>& sizes,
                                                const std::function<Result<std::span<const float>>(size_t)>& scores);

}  // namespace espalier
