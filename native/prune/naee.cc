#include "prune/naee.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

namespace espalier {
namespace {

// The scores of a token that do not depend on which experts are kept: of a softmax exp(logit − largest), to be divided
// by their sum over the kept ones.
void score(const RouterOptions& options, const float* logits, int64_t experts, double* scores) {
  const double highest = *std::max_element(logits, logits + experts);
  for (int64_t e = 0; e < experts; ++e) {
    const double logit = logits[e];
    scores[e] = options.scoring == Scoring::kSoftmax ? std::exp(logit - highest) : 1 / (1 + std::exp(-logit));
  }
}

// Chooses among some of the experts, in float64.
class Chooser {
 public:
  explicit Chooser(const RouterOptions& options)
      : options_(options), best_(static_cast<size_t>(options.top_k)), keys_(best_.size()) {}

  // gates[e] += sign · the gate that a router of only these rows gives expert e.
  void add_gates(const double* scores, const int32_t* rows, int64_t count, double sign, double* gates) {
    double total = 1;
    if (options_.scoring == Scoring::kSoftmax) {
      total = 0;
      for (int64_t i = 0; i < count; ++i) total += scores[rows[i]];
    }
    size_t chosen = 0;
    for (int64_t i = 0; i < count; ++i) push(rows[i], key(rows[i], scores, total), chosen);
    double sum = 0;
    for (size_t k = 0; k < chosen; ++k) sum += scores[best_[k]] / total;
    const double factor = options_.routed_scaling_factor / (options_.renormalise ? sum + 1e-20 : 1.0);
    for (size_t k = 0; k < chosen; ++k) gates[best_[k]] += sign * factor * (scores[best_[k]] / total);
  }

 private:
  double key(int32_t row, const double* scores, double total) const {
    if (options_.correction_bias.empty()) return scores[row];
    return scores[row] / total + static_cast<double>(options_.correction_bias[static_cast<size_t>(row)]);
  }

  // Keeps the largest keys in order, of equal ones the first.
  void push(int32_t row, double key, size_t& chosen) {
    if (chosen == best_.size() && !(key > keys_[chosen - 1])) return;
    size_t at = chosen < best_.size() ? chosen++ : chosen - 1;
    for (; at > 0 && key > keys_[at - 1]; --at) {
      keys_[at] = keys_[at - 1];
      best_[at] = best_[at - 1];
    }
    keys_[at] = key;
    best_[at] = row;
  }

  const RouterOptions& options_;
  std::vector<int32_t> best_;
  std::vector<double> keys_;
};

// G[i][j] = f_i · f_j of one token; outputs lie `stride` apart from one expert to the next.
void gram_of(const float* outputs, int64_t stride, int64_t experts, int64_t hidden, double* gram) {
  for (int64_t i = 0; i < experts; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const float* a = outputs + i * stride;
      const float* b = outputs + j * stride;
      double sum = 0;
      for (int64_t h = 0; h < hidden; ++h) sum += static_cast<double>(a[h]) * static_cast<double>(b[h]);
      gram[i * experts + j] = gram[j * experts + i] = sum;
    }
  }
}

}  // namespace

int64_t count_sets(int64_t n, int64_t r, int64_t most) {
  if (r < 0 || r > n) return 0;
  r = std::min(r, n - r);
  int64_t count = 1;
  for (int64_t i = 1; i <= r; ++i) {
    // Exact: the product of i consecutive numbers is divisible by i!.
    count = count * (n - r + i) / i;
    if (count > most) return most + 1;
  }
  return count;
}

Result<KeptSetLosses> KeptSetLosses::create(const RouterOptions& routing, int64_t experts, int64_t keep) {
  if (keep < 1 || keep >= experts) {
    return Status(Code::kUsage, "of " + std::to_string(experts) + " experts between 1 and " +
                                    std::to_string(experts - 1) + " can be kept; found " + std::to_string(keep));
  }
  const int64_t sets = count_sets(experts, keep, kMostKeptSets);
  if (sets > kMostKeptSets) {
    return Status(Code::kUsage, "more than " + std::to_string(kMostKeptSets) + " sets of " + std::to_string(keep) +
                                    " of " + std::to_string(experts) + " experts: too many to try");
  }
  KeptSetLosses result;
  result.routing_ = routing;
  result.experts_ = experts;
  result.keep_ = keep;
  result.losses_.assign(static_cast<size_t>(sets), 0.0);
  result.open_.assign(static_cast<size_t>(sets), 0.0);
  std::vector<int32_t> set(static_cast<size_t>(keep));
  std::iota(set.begin(), set.end(), 0);
  for (int64_t s = 0; s < sets; ++s) {
    result.sets_.insert(result.sets_.end(), set.begin(), set.end());
    // The last member that can move on does, and those behind it follow.
    for (int64_t i = keep - 1; i >= 0; --i) {
      if (set[static_cast<size_t>(i)] == experts - keep + i) continue;
      ++set[static_cast<size_t>(i)];
      for (int64_t j = i + 1; j < keep; ++j) set[static_cast<size_t>(j)] = set[static_cast<size_t>(j - 1)] + 1;
      break;
    }
  }
  return result;
}

void output_grams(ThreadPool& pool, const float* outputs, int64_t experts, int64_t tokens, int64_t hidden,
                  double* grams) {
  pool.parallel_for(tokens, 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      gram_of(outputs + t * hidden, tokens * hidden, experts, hidden, grams + t * experts * experts);
    }
  });
}

void KeptSetLosses::add(ThreadPool& pool, const float* logits, const double* grams, int64_t tokens) {
  const int64_t n = experts_;
  std::vector<double> dense(static_cast<size_t>(tokens * n), 0.0);
  std::vector<double> scores(dense.size());
  std::vector<int32_t> all(static_cast<size_t>(n));
  for (size_t e = 0; e < all.size(); ++e) all[e] = static_cast<int32_t>(e);
  pool.parallel_for(tokens, 4, [&](int64_t begin, int64_t end) {
    Chooser chooser(routing_);
    for (int64_t t = begin; t < end; ++t) {
      score(routing_, logits + t * n, n, scores.data() + t * n);
      chooser.add_gates(scores.data() + t * n, all.data(), n, 1, dense.data() + t * n);
    }
  });
  pool.parallel_for(static_cast<int64_t>(open_.size()), 8, [&](int64_t begin, int64_t end) {
    Chooser chooser(routing_);
    std::vector<double> change(static_cast<size_t>(n));
    std::vector<int64_t> changed;
    for (int64_t s = begin; s < end; ++s) {
      for (int64_t t = 0; t < tokens; ++t) {
        std::copy_n(dense.data() + t * n, n, change.begin());
        chooser.add_gates(scores.data() + t * n, sets_.data() + s * keep_, keep_, -1, change.data());
        changed.clear();
        for (int64_t e = 0; e < n; ++e) {
          if (change[static_cast<size_t>(e)] != 0) changed.push_back(e);
        }
        const double* gram = grams + t * n * n;
        double square = 0;
        for (const int64_t i : changed) {
          for (const int64_t j : changed) {
            square += change[static_cast<size_t>(i)] * change[static_cast<size_t>(j)] * gram[i * n + j];
          }
        }
        open_[static_cast<size_t>(s)] += std::max(square, 0.0);
      }
    }
  });
}

void KeptSetLosses::end_batch() {
  for (size_t s = 0; s < open_.size(); ++s) {
    losses_[s] += std::sqrt(open_[s]);
    open_[s] = 0;
  }
}

}  // namespace espalier
