#include "engine/inputs.h"

#include "core/scratch.h"

namespace espalier {
namespace {

// Rows that one range of a loop converts.
constexpr int64_t kRows = 16;

thread_local Scratch scratch;

}  // namespace

Inputs::Inputs(ThreadPool& pool, const CpuKernels& kernels, Activations activations)
    : pool_(pool), kernels_(kernels), activations_(activations), start_(scratch.mark()) {}

Inputs::~Inputs() { scratch.release(start_); }

int64_t Inputs::chunk(const PackedMatrix& weights, int64_t tokens) const {
  if (kind_for(weights.format().values, tokens) != Form::Kind::kTiles) return tokens;
  constexpr int64_t kPair = 2 * kTileTokens;
  const int64_t chunks = (tokens + TileLayout::kChunkTokens - 1) / TileLayout::kChunkTokens;
  return ((tokens + chunks - 1) / chunks + kPair - 1) / kPair * kPair;
}

Inputs::Form::Kind Inputs::kind_for(Values values, int64_t tokens) const {
  if (is_quantised(values)) return Form::Kind::kQuantised;
  if (values != Values::kBf16 || activations_ == Activations::kFloat32) return Form::Kind::kPlain;
  const bool tiled = kernels_.tiled_tokens > 0 && tokens >= kernels_.tiled_tokens;
  return tiled ? Form::Kind::kTiles : Form::Kind::kRounded;
}

const Inputs::Form& Inputs::form(const PackedMatrix& weights, const float* x, int64_t x_stride, int64_t tokens) {
  const Form::Kind kind = kind_for(weights.format().values, tokens);
  for (const Memory& memory : memories_) {
    if (memory.form.kind == kind && memory.form.source == x && memory.form.tokens == tokens) return memory.form;
  }
  Memory& memory = memories_.emplace_back();
  memory.form.kind = kind;
  memory.form.source = x;
  memory.form.tokens = tokens;
  memory.form.x = x;
  memory.form.x_stride = x_stride;
  switch (kind) {
    case Form::Kind::kPlain: break;
    case Form::Kind::kRounded: round(memory, weights.cols()); break;
    case Form::Kind::kTiles: tile(memory, weights.cols()); break;
    case Form::Kind::kQuantised: quantise(memory, weights.cols(), weights.groups()); break;
  }
  return memory.form;
}

void Inputs::round(Memory& memory, int64_t cols) {
  Form& form = memory.form;
  const int64_t stride = (cols + 1) / 2 * 2;
  auto* rounded = reinterpret_cast<float*>(scratch.take(static_cast<size_t>(form.tokens * stride) * sizeof(float)));
  pool_.parallel_for(form.tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.round_row(form.source + t * form.x_stride, cols, rounded + t * stride);
      if (cols < stride) rounded[t * stride + cols] = 0;
    }
  });
  form.x = rounded;
  form.x_stride = stride;
}

void Inputs::tile(Memory& memory, int64_t cols) {
  Form& form = memory.form;
  const TileLayout layout = TileLayout::of(form.tokens, cols);
  auto* out = reinterpret_cast<uint16_t*>(scratch.take(static_cast<size_t>(layout.elements()) * sizeof(uint16_t)));
  pool_.parallel_for(layout.pairs, 1, [&](int64_t pair, int64_t) {
    kernels_.fill_tiles(form.source, form.x_stride, form.tokens, cols, pair, out);
  });
  form.tiles = out;
}

void Inputs::quantise(Memory& memory, int64_t cols, int64_t groups) {
  Form& form = memory.form;
  const int64_t readable = (form.tokens + kTileTokens - 1) / kTileTokens * kTileTokens;
  memory.scales.resize(static_cast<size_t>(readable * groups));
  memory.sums.resize(memory.scales.size());
  auto* q = reinterpret_cast<int8_t*>(scratch.take(static_cast<size_t>(readable * groups * kGroup)));
  pool_.parallel_for(form.tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.quantise_row(form.source + t * form.x_stride, cols, q + t * groups * kGroup,
                            memory.scales.data() + t * groups, memory.sums.data() + t * groups);
    }
  });
  form.quantised = {q, memory.scales.data(), memory.sums.data(), groups};
}

}  // namespace espalier
