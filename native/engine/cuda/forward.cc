#include "engine/cuda/forward.h"

#include <algorithm>

#include "engine/cuda/group_size.h"
#include "kernels/cuda/routing.h"

namespace espalier::cuda {
namespace {

// Kernels take a null pointer for what is not there.
template <class T>
T* optional(const DeviceMemory& memory) {
  return memory.bytes() > 0 ? memory.as<T>() : nullptr;
}

}  // namespace

// One token has a group for each of its experts.
Forward::Plan Forward::plan(const FeedForwardPart& part, int rows) const {
  if (!part.is_routed) return {1, rows};
  if (rows == 1) return {1, part.routing.top_k};
  const double average = static_cast<double>(rows) * part.routing.top_k / part.experts;
  const GroupPlan of = plan_groups(part.gate_up.view.layout, average, rows, model_.parts, wide_);
  return {of.tokens, most_groups(rows, part.routing.top_k, part.experts, of.tokens), of.wide};
}

PartRows Forward::part_rows(const DeviceMemory& memory, int64_t width) const {
  return {memory.as<uint16_t>(), model_.parts, part_stride(width)};
}

// `x` and `y` have room for whole groups.
Status Forward::multiply(const Matrices& matrix, const PartRows& x, int rows, void* y, OutputType output,
                         cudaStream_t stream, const Matrices* next) {
  Product product;
  product.weights = matrix.view;
  product.tokens = rows;
  product.parts = x.parts;
  product.x = x.data;
  product.y = y;
  product.output = output;
  if (next != nullptr) product.next = &next->view;
  if (dense_ && DenseProducts::is_faster(product)) return dense_->launch(product, stream);
  return launch_rows(product, wide_, stream);
}

// Adds to the residual stream, and norms it for the next products.
Status Forward::norm(const float* weight, const NormTask& added, int rows, cudaStream_t stream) {
  NormTask task = added;
  task.rows = rows;
  task.width = model_.hidden;
  task.hidden = hidden_.as<float>();
  task.weight = weight;
  task.epsilon = model_.norm_epsilon;
  task.out = part_rows(input_, model_.hidden);
  task.out_floats = input_floats_.as<float>();
  return add_and_norm(task, stream);
}

Status Forward::run(const StepRows& rows, cudaStream_t stream) {
  const int count = rows.places.rows;
  ESPALIER_TRY(embed({.rows = count,
                      .width = model_.hidden,
                      .tokens = rows.tokens,
                      .positions = rows.places.positions,
                      .table = model_.embedding.memory.data(),
                      .table_is_bf16 = model_.embedding.is_bf16,
                      .hidden = hidden_.as<float>(),
                      .inverse_frequencies = model_.inverse_frequencies.as<float>(),
                      .half = model_.rope_half,
                      .scale = model_.rope_scale,
                      .cosines = cosines_.as<float>(),
                      .sines = sines_.as<float>()},
                     stream));
  if (model_.layers.empty()) return Status::ok();
  if (count == 1 && one_row_.takes_model()) {
    return one_row_.run(rows.places, cosines_.as<float>(), sines_.as<float>(), hidden_.as<float>(), stream);
  }
  ESPALIER_TRY(norm(model_.layers.front().attention_norm.as<float>(), {}, count, stream));
  for (size_t i = 0; i < model_.layers.size(); ++i) {
    const Layer& layer = model_.layers[i];
    const bool is_last = i + 1 == model_.layers.size();
    ESPALIER_TRY(attention(layer, is_last ? model_.head : model_.layers[i + 1].qkv, rows, stream));
    for (const FeedForwardPart& part : layer.feed_forward) {
      const bool ends_layer = &part == &layer.feed_forward.back();
      const float* next =
          ends_layer && !is_last ? model_.layers[i + 1].attention_norm.as<float>() : static_cast<float*>(nullptr);
      ESPALIER_TRY(feed_forward(part, count, next, stream));
    }
  }
  return Status::ok();
}

// The values that each row attends to.
Status Forward::mix(const Layer& layer, const StepRows& rows, const PartRows& out, cudaStream_t stream) {
  const AttendTask task{.places = rows.places,
                        .shape = layer.heads,
                        .scale = layer.scale,
                        .window = layer.window,
                        .cache = {layer.keys.data(), layer.values.data(), model_.kv_is_bf16},
                        .queries = queries_.as<float>(),
                        .out = out,
                        .splits = rows.splits,
                        .split_chunks = rows.split_chunks,
                        .partials = partials_.as<float>()};
  if (rows.runs == 0 || !can_attend_runs(layer.heads)) return attend(task, stream);
  return attend_runs({task, rows.runs, rows.run_firsts, rows.run_counts}, stream);
}

Status Forward::attention(const Layer& layer, const Matrices& after, const StepRows& rows, cudaStream_t stream) {
  const int count = rows.places.rows;
  const KvCache cache{layer.keys.data(), layer.values.data(), model_.kv_is_bf16};
  ESPALIER_TRY(multiply(layer.qkv, part_rows(input_, model_.hidden), count, qkv_.data(), OutputType::kF32, stream,
                        &layer.output));
  const auto is_whole = [&](const DeviceMemory& norm) {
    return norm.bytes() != layer.heads.head_dim * static_cast<int64_t>(sizeof(float));
  };
  ESPALIER_TRY(prepare_heads({.places = rows.places,
                              .shape = layer.heads,
                              .source = qkv_.as<float>(),
                              .bias = optional<float>(layer.qkv_bias),
                              .q_norm = optional<float>(layer.q_norm),
                              .k_norm = optional<float>(layer.k_norm),
                              .q_norm_whole = is_whole(layer.q_norm),
                              .k_norm_whole = is_whole(layer.k_norm),
                              .epsilon = model_.norm_epsilon,
                              .clip = layer.clip,
                              .cosines = cosines_.as<float>(),
                              .sines = sines_.as<float>(),
                              .queries = queries_.as<float>(),
                              .cache = cache},
                             stream));
  const PartRows mixed = part_rows(mixed_, layer.query_width());
  ESPALIER_TRY(mix(layer, rows, mixed, stream));
  ESPALIER_TRY(multiply(layer.output, mixed, count, output_.data(), OutputType::kF32, stream, &after));
  NormTask added;
  added.source = output_.as<float>();
  added.bias = optional<float>(layer.output_bias);
  return norm(layer.feed_forward_norm.as<float>(), added, count, stream);
}

// hidden += part(input), and the norm of what follows where this ends a layer.
Status Forward::feed_forward(const FeedForwardPart& part, int rows, const float* next_norm, cudaStream_t stream) {
  const RouterOptions& routing = part.routing;
  const Plan of_part = plan(part, rows);
  // One token's pairs are their own groups.
  const bool direct = rows == 1;
  if (part.router_rows > 0) {
    ESPALIER_TRY(route({.tokens = rows,
                        .rows = part.router_rows,
                        .width = model_.hidden,
                        .top_k = routing.top_k,
                        .renormalise = routing.renormalise,
                        .sigmoid = routing.scoring == Scoring::kSigmoid,
                        .groups = routing.n_group,
                        .top_groups = routing.topk_group,
                        .scaling = routing.routed_scaling_factor,
                        .x = input_floats_.as<float>(),
                        .weights = part.router.memory.data(),
                        .weights_are_bf16 = part.router.is_bf16,
                        .bias = optional<float>(part.correction_bias),
                        .skip_below = optional<float>(part.skip_below),
                        .expert_of_row = part.expert_of_row.as<int32_t>(),
                        .logits = router_logits_.as<float>(),
                        .unfinished = unfinished_.as<int32_t>(),
                        .experts = experts_.as<int32_t>(),
                        .gates = gates_.as<float>(),
                        .slots = direct ? slots_.as<int32_t>() : nullptr},
                       stream));
  }
  if (part.is_routed && !direct) {
    ESPALIER_TRY(group_rows({.tokens = rows,
                             .top_k = routing.top_k,
                             .experts_count = part.experts,
                             .group_tokens = of_part.group_tokens,
                             .groups = of_part.groups,
                             .experts = experts_.as<int32_t>(),
                             .group_experts = group_experts_.as<int32_t>(),
                             .inputs = inputs_.as<int32_t>(),
                             .slots = slots_.as<int32_t>()},
                            stream));
  }
  const PartRows input = part_rows(input_, model_.hidden);
  const PartRows activations = part_rows(activations_, part.width);
  if (part.is_routed) {
    ESPALIER_TRY(run_experts(part, of_part, input, activations, stream));
  } else {
    ESPALIER_TRY(multiply(part.gate_up, input, rows, activations.data, OutputType::kGated, stream));
    ESPALIER_TRY(multiply(part.down, activations, rows, down_.data(), OutputType::kF32, stream));
  }
  NormTask added;
  added.source = down_.as<float>();
  if (part.is_routed) added.slots = slots_.as<int32_t>();
  if (part.router_rows > 0) added.gates = gates_.as<float>();
  added.terms = part.is_routed ? routing.top_k : 1;
  return norm(next_norm, added, rows, stream);
}

// The products of the chosen experts, into `down_`.
Status Forward::run_experts(const FeedForwardPart& part, const Plan& of_part, const PartRows& input,
                            const PartRows& activations, cudaStream_t stream) {
  const bool direct = of_part.group_tokens == 1;
  Product product;
  product.groups = of_part.groups;
  product.tokens = of_part.group_tokens;
  product.parts = model_.parts;
  product.experts = direct ? experts_.as<int32_t>() : group_experts_.as<int32_t>();
  product.weights = part.gate_up.view;
  product.x = input.data;
  product.inputs = direct ? zeros_.as<int32_t>() : inputs_.as<int32_t>();
  product.y = activations.data;
  product.output = OutputType::kGated;
  if (of_part.wide) {
    const PartRows gathered = part_rows(gathered_, model_.hidden);
    ESPALIER_TRY(gather_rows(
        {.slots = static_cast<int>(of_part.slots()), .inputs = product.inputs, .from = input, .to = gathered}, stream));
    product.x = gathered.data;
    product.inputs = nullptr;
    product.experts_settled = true;
    ESPALIER_TRY(launch_wide_product(product, stream));
  } else {
    ESPALIER_TRY(launch_product(product, stream));
  }
  product.weights = part.down.view;
  product.x = activations.data;
  product.inputs = nullptr;
  product.experts_settled = true;
  product.y = down_.data();
  product.output = OutputType::kF32;
  return of_part.wide ? launch_wide_product(product, stream) : launch_product(product, stream);
}

Status Forward::run_head(const LogitRows& rows, cudaStream_t stream) {
  const PartRows last = part_rows(last_, model_.hidden);
  ESPALIER_TRY(add_and_norm({.rows = rows.count,
                             .width = model_.hidden,
                             .hidden = hidden_.as<float>(),
                             .pick = rows.rows,
                             .weight = model_.final_norm.as<float>(),
                             .epsilon = model_.norm_epsilon,
                             .out = last},
                            stream));
  ESPALIER_TRY(multiply(model_.head, last, rows.count, logits(), OutputType::kF32, stream));
  if (rows.wants_likeliest) {
    ESPALIER_TRY(find_largest(
        {.rows = rows.count, .width = model_.vocabulary, .logits = logits(), .places = likeliest()}, stream));
  }
  if (rows.targets == nullptr) return Status::ok();
  return score(
      {.rows = rows.count, .width = model_.vocabulary, .logits = logits(), .targets = rows.targets, .scores = scores()},
      stream);
}

}  // namespace espalier::cuda
