// What a request says about single tokens: applied to its logits before the next token is drawn from them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace espalier {

struct LogitBias {
  int32_t token = 0;
  float value = 0;
};

// Applied in this order. Ids outside the logits are passed over.
struct LogitRules {
  // Divides the positive, multiplies the negative logits of the tokens of `history` (Keskar et al. 2019).
  float repetition_penalty = 1;
  // Of a token that stands c > 0 times in the answer, presence + c · frequency is subtracted (OpenAI's formula).
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<LogitBias> bias = {};   // added
  std::vector<int32_t> mask = {};     // token i may come if bit i % 32 of word i / 32 is set; empty: all may
  std::vector<int32_t> history = {};  // prompt and answer, for the penalties
  int64_t answer_begin = 0;           // index of the answer's first token in `history`

  bool change_nothing() const {
    return repetition_penalty == 1 && presence_penalty == 0 && frequency_penalty == 0 && bias.empty() && mask.empty();
  }
  void apply(std::span<float> logits) const;
};

}  // namespace espalier
