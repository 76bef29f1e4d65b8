// How many tokens of an expert go through a product together.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/product.h"

namespace espalier::cuda {

struct GroupPlan {
  int tokens = 1;     // of a group
  bool wide = false;  // whether by launch_wide_product
};

// The groups that an expert with `average` tokens has on average, Poisson-distributed as those of a router are about.
inline double expected_groups(double average, int tokens) {
  constexpr double kMany = 200;
  if (average > kMany) return average / tokens + 0.5;
  double groups = 0;
  double exactly = std::exp(-average);
  double at_most = 0;
  for (int count = 0; at_most < 1 - 1e-6 && count < 10 * kMany; ++count) {
    const int taken = (count + tokens - 1) / tokens;
    groups += exactly * taken;
    at_most += exactly;
    exactly *= average / (count + 1);
  }
  return groups;
}

// The plan that takes the experts of a layer through in the least time: `average` tokens of each, of `rows` of `parts`
// in all, more than one. Small groups cost reading weights again for experts with more tokens, large ones time of the
// tensor cores or instructions.
inline GroupPlan plan_groups(TileLayout layout, double average, int rows, int parts, bool has_wide) {
  struct Size {
    int tokens;
    bool wide;
  };
  const Size sizes[] = {{kMostFewRows / 2 / parts, false},
                        {kMostFewRows / parts, false},
                        {32, true},
                        {64, true},
                        {128, true},
                        {256, true}};
  // How long groups of these sizes take, the first one being 1: bench/RESULTS.md.
  constexpr double kCosts[][6] = {{1, 1.00, 1.05, 1.12, 1.2, 1.6},   // dense
                                  {1, 1.08, 1.20, 1.33, 1.4, 2.0},   // 2:4
                                  {1, 1.30, 1.27, 1.47, 1.9, 2.5},   // n:32
                                  {1, 1.20, 1.30, 1.53, 1.95, 2.5},  // bitmap
                                  {1, 1.44, 1.48, 1.57, 1.95, 2.7},  // dense int8
                                  {1, 1.25, 1.35, 1.44, 1.9, 2.6}};  // 2:4 int8
  // And how much longer with a second part of x, for which groups of few tokens already have half as many.
  constexpr double kSecondPart[] = {1, 1, 1.12, 1.18, 1.5, 1.5};
  GroupPlan best;
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 6 && (has_wide || !sizes[i].wide); ++i) {
    const double cost = expected_groups(average, sizes[i].tokens) * kCosts[static_cast<int>(layout)][i] *
                        (parts == 2 ? kSecondPart[i] : 1.0);
    if (cost >= least) continue;
    least = cost;
    // Products of few take no more than they can use.
    best = {sizes[i].wide ? sizes[i].tokens : std::min(sizes[i].tokens, rows), sizes[i].wide};
  }
  return best;
}

}  // namespace espalier::cuda
