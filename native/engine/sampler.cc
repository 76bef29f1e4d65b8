#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace espalier {
namespace {

// SplitMix64 (Steele, Lea and Flood 2014): a counter-based generator, so a draw needs no state but its number.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

double uniform(uint64_t seed, uint64_t step) { return static_cast<double>(mix(mix(seed) ^ step) >> 11) * 0x1p-53; }

struct Candidate {
  int32_t id;
  double weight;
};

bool likelier(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

double weight_of(const std::vector<Candidate>& candidates) {
  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  return total;
}

void keep_top_k(std::vector<Candidate>& candidates, size_t k) {
  if (k >= candidates.size()) return;
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(k), candidates.end(), likelier);
  candidates.resize(k);
}

// So few are found fastest in one pass that keeps a heap of them.
constexpr size_t kFewSorted = 64;

// Sorts only a few times as many candidates as it keeps: mostly a handful of a large vocabulary.
void keep_top_p(std::vector<Candidate>& candidates, double p) {
  const double wanted = p * weight_of(candidates);
  double reached = 0;
  size_t kept = 0;
  size_t sorted = 0;
  while (kept < candidates.size() && (kept == 0 || reached < wanted)) {
    if (kept == sorted) {
      const auto begin = candidates.begin() + static_cast<ptrdiff_t>(sorted);
      sorted = std::min(candidates.size(), std::max<size_t>(kFewSorted, 4 * sorted));
      const auto end = candidates.begin() + static_cast<ptrdiff_t>(sorted);
      if (sorted > kFewSorted) {
        std::nth_element(begin, end, candidates.end(), likelier);
        std::sort(begin, end, likelier);
      } else {
        std::partial_sort(begin, end, candidates.end(), likelier);
      }
    }
    reached += candidates[kept++].weight;
  }
  candidates.resize(kept);
}

}  // namespace

int32_t sample(std::span<const float> logits, const SamplerOptions& options, uint64_t step) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options.temperature <= 0) return static_cast<int32_t>(best - logits.begin());

  const double highest = *best;
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const double weight =
        std::exp((static_cast<double>(logits[i]) - highest) / static_cast<double>(options.temperature));
    if (weight > 0) candidates.push_back({static_cast<int32_t>(i), weight});
  }
  // Logits of NaN or infinity leave nothing to draw from.
  if (candidates.empty()) return static_cast<int32_t>(best - logits.begin());
  if (options.top_k > 0) keep_top_k(candidates, static_cast<size_t>(options.top_k));
  if (options.top_p < 1) keep_top_p(candidates, static_cast<double>(options.top_p));
  // The most likely token weighs 1, so min-p compares weights as they are.
  std::erase_if(candidates, [&](const Candidate& c) { return c.weight < static_cast<double>(options.min_p); });
  double left = uniform(options.seed, step) * weight_of(candidates);
  for (const Candidate& c : candidates) {
    left -= c.weight;
    if (left < 0) return c.id;
  }
  return candidates.back().id;
}

}  // namespace espalier
