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

}  // namespace

int32_t sample(std::span<const float> logits, const SamplerOptions& options, uint64_t step) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options.temperature <= 0) return static_cast<int32_t>(best - logits.begin());

  struct Candidate {
    int32_t id;
    double weight;
  };
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
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
  };
  if (options.top_k > 0 && static_cast<size_t>(options.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + options.top_k, candidates.end(), likelier);
    candidates.resize(static_cast<size_t>(options.top_k));
  }
  std::sort(candidates.begin(), candidates.end(), likelier);
  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  if (options.top_p < 1) {
    const double wanted = static_cast<double>(options.top_p) * total;
    double reached = 0;
    size_t kept = 0;
    while (kept < candidates.size() && (kept == 0 || reached < wanted)) reached += candidates[kept++].weight;
    candidates.resize(kept);
  }
  // The most likely token weighs 1, so min-p compares weights as they are.
  while (candidates.back().weight < static_cast<double>(options.min_p)) candidates.pop_back();
  total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  double left = uniform(options.seed, step) * total;
  for (const Candidate& c : candidates) {
    left -= c.weight;
    if (left < 0) return c.id;
  }
  return candidates.back().id;
}

}  // namespace espalier
