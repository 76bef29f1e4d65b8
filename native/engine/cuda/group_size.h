// How many tokens of an expert go through a product together.
#pragma once

#include <limits>

namespace espalier::cuda {

// Tokens that products of many take of an expert at a time, and how long they take for so many, one group being 1.
struct GroupSize {
  int tokens;
  double cost;
};
inline constexpr GroupSize kGroupSizes[] = {{32, 1.0}, {64, 1.1}, {128, 1.4}, {256, 2.4}};

// The size that takes an expert with `average` tokens through in the least time: the last of its groups is half full,
// and where one is large enough for most experts, there is one.
constexpr int choose_group(double average) {
  const GroupSize* best = kGroupSizes;
  double least = std::numeric_limits<double>::infinity();
  for (const GroupSize& size : kGroupSizes) {
    const double groups = average < 0.9 * size.tokens ? 1 : average / size.tokens + 0.5;
    if (groups * size.cost >= least) continue;
    least = groups * size.cost;
    best = &size;
  }
  return best->tokens;
}

}  // namespace espalier::cuda
