#include "engine/logit_rules.h"

#include <limits>

namespace espalier {
namespace {

void penalise_repetition(std::span<float> logits, float penalty, std::span<const int32_t> history) {
  std::vector<bool> seen(logits.size());
  for (const int32_t id : history) {
    const auto i = static_cast<size_t>(id);
    if (i >= logits.size() || seen[i]) continue;
    seen[i] = true;
    logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
  }
}

void penalise_frequency(std::span<float> logits, float presence, float frequency, std::span<const int32_t> answer) {
  std::vector<int32_t> counts(logits.size());
  for (const int32_t id : answer) {
    const auto i = static_cast<size_t>(id);
    if (i < logits.size()) ++counts[i];
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    if (counts[i] > 0) logits[i] -= presence + static_cast<float>(counts[i]) * frequency;
  }
}

void apply_mask(std::span<float> logits, std::span<const int32_t> mask) {
  for (size_t i = 0; i < logits.size(); ++i) {
    const size_t word = i / 32;
    const bool allowed = word < mask.size() && (static_cast<uint32_t>(mask[word]) >> (i % 32) & 1) != 0;
    if (!allowed) logits[i] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace

void LogitRules::apply(std::span<float> logits) const {
  if (repetition_penalty != 1) penalise_repetition(logits, repetition_penalty, history);
  if (presence_penalty != 0 || frequency_penalty != 0) {
    penalise_frequency(logits, presence_penalty, frequency_penalty,
                       std::span(history).subspan(static_cast<size_t>(answer_begin)));
  }
  for (const LogitBias& entry : bias) {
    const auto i = static_cast<size_t>(entry.token);
    if (i < logits.size()) logits[i] += entry.value;
  }
  if (!mask.empty()) apply_mask(logits, mask);
}

}  // namespace espalier
