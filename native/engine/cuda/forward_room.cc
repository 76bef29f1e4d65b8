// The memory between the launches of a step.
#include <algorithm>

#include "engine/cuda/forward.h"
#include "kernels/cuda/routing.h"

namespace espalier::cuda {
namespace {

// Rows of a buffer are a multiple of the most that a group of a product takes.
constexpr int kRowUnit = 64;
static_assert(kMostLogitRows % kRowUnit == 0);

int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

Status ensure_zeros(DeviceMemory& memory, int64_t bytes) {
  if (bytes <= memory.bytes()) return Status::ok();
  ESPALIER_TRY(memory.ensure(bytes));
  return to_status(cudaMemset(memory.data(), 0, static_cast<size_t>(bytes)), "cudaMemset");
}

}  // namespace

// Of buffers whose contents do not matter.
std::vector<Forward::Need> Forward::needs(int rows, int splits) {
  // Products of one matrix write whole groups.
  const int64_t count = round_up(rows, kRowUnit);
  const auto floats = [](int64_t elements) { return elements * static_cast<int64_t>(sizeof(float)); };
  const auto parts = [&](int64_t width) { return static_cast<int64_t>(model_.parts) * part_stride(width) * 2; };
  int64_t pairs = 0;
  int64_t logits = 0;
  int64_t groups = 0;
  int64_t slots = 0;
  int64_t gathered = 0;
  int64_t activations = 0;
  int64_t down = 0;
  for (const Layer& layer : model_.layers) {
    for (const FeedForwardPart& part : layer.feed_forward) {
      const Plan of_part = plan(part, rows);
      pairs = std::max<int64_t>(pairs, count * part.routing.top_k);
      logits = std::max<int64_t>(logits, count * part.router_rows);
      groups = std::max<int64_t>(groups, of_part.groups);
      const int64_t places = part.is_routed ? of_part.slots() : count;
      slots = std::max(slots, places);
      if (of_part.wide) gathered = std::max(gathered, places * parts(model_.hidden));
      activations = std::max(activations, places * parts(part.width));
      down = std::max(down, places * model_.hidden);
    }
  }
  const auto& layers = model_.layers;
  const int64_t queries = widest(layers, [](const Layer& layer) { return layer.query_width(); });
  const int64_t answers = model_.has_head() ? kMostLogitRows : 0;
  return {
      {&hidden_, floats(count * model_.hidden)},
      {&cosines_, floats(count * model_.rope_half)},
      {&sines_, floats(count * model_.rope_half)},
      {&input_, count * parts(model_.hidden)},
      {&input_floats_, floats(count * model_.hidden)},
      {&qkv_, floats(count * widest(layers, [](const Layer& layer) { return layer.qkv_width(); }))},
      {&queries_, floats(count * queries)},
      {&mixed_, count * parts(queries)},
      {&partials_,
       splits > 1 ? floats(widest(layers,
                                  [&](const Layer& layer) { return attend_partial_floats(layer.heads, rows, splits); }))
                  : 0},
      {&output_, floats(count * model_.hidden)},
      {&router_logits_, floats(logits)},
      {&experts_, floats(pairs)},
      {&gates_, floats(pairs)},
      {&slots_, floats(pairs)},
      {&group_experts_, floats(groups)},
      {&inputs_, floats(slots)},
      {&gathered_, gathered},
      {&activations_, activations},
      {&down_, floats(down)},
      {&last_, answers * parts(model_.hidden)},
      {&logits_, floats(answers * model_.vocabulary)},
      {&scores_, answers * static_cast<int64_t>(sizeof(double))},
      {&likeliest_, answers * static_cast<int64_t>(sizeof(int32_t))},
  };
}

Status Forward::reserve(int rows, int splits) {
  if (!is_prepared_ && !model_.layers.empty()) ESPALIER_TRY(one_row_.prepare(model_));
  is_prepared_ = true;
  for (const Need& need : needs(rows, splits)) {
    if (need.bytes > need.memory->bytes()) ++moves_;
    ESPALIER_TRY(need.memory->ensure(need.bytes));
  }
  find_dense(rows);
  ESPALIER_TRY(ensure_zeros(zeros_, kMostChosen * static_cast<int64_t>(sizeof(int32_t))));
  return ensure_zeros(unfinished_, round_up(rows, kRowUnit) * static_cast<int64_t>(sizeof(int32_t)));
}

int64_t Forward::scratch_bytes(int rows, int splits) {
  int64_t bytes = 0;
  for (const Need& need : needs(rows, splits)) bytes += need.bytes;
  return bytes;
}

// Whether a step of so many rows has products that are faster through DenseProducts.
bool Forward::wants_dense(int rows) const {
  const auto wants = [&](const Matrices& matrix) {
    return DenseProducts::is_faster(
        {.weights = matrix.view, .tokens = rows, .parts = model_.parts, .output = OutputType::kF32});
  };
  return std::any_of(model_.layers.begin(), model_.layers.end(), [&](const Layer& layer) {
    return wants(layer.qkv) || wants(layer.output) ||
           std::any_of(layer.feed_forward.begin(), layer.feed_forward.end(),
                       [&](const FeedForwardPart& part) { return !part.is_routed && wants(part.down); });
  });
}

// Without it, our own kernels do its work.
void Forward::find_dense(int rows) {
  if (looked_for_dense_ || !wide_ || !wants_dense(rows)) return;
  looked_for_dense_ = true;
  Result<DenseProducts> found = DenseProducts::create();
  if (found.is_ok()) dense_ = std::move(found.value());
}

}  // namespace espalier::cuda
