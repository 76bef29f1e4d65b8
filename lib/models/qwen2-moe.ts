/** Qwen1.5-MoE and Qwen2-MoE: q, k and v biases, a shared expert scaled by a sigmoid gate, dense layers in between. */

import type { ConfigFields } from './config.ts';
import { limits } from './config.ts';
import type { Family, FeedForwardPlan } from './decoder.ts';
import { readRouting } from './experts-config.ts';
import { readFeedForwards, readSlidingLayers } from './fields.ts';

export const qwen2Moe: Family = {
  modelType: 'qwen2_moe',
  architecture: 'Qwen2MoeForCausalLM',
  defaults: { kvHeads: 16, normEpsilon: 1e-6, ropeTheta: 1e4 },
  plan(config, { layers }) {
    const width = { max: limits.width };
    const routing = readRouting(config, 'num_experts', layers);
    const renormalise = config.boolean('norm_topk_prob', false);
    const expertWidth = config.integer('moe_intermediate_size', width);
    const shared: FeedForwardPlan = {
      kind: 'dense',
      module: 'mlp.shared_expert',
      gate: 'mlp.shared_expert_gate',
      width: config.integer('shared_expert_intermediate_size', width),
    };
    const feedForward = readFeedForwards(config, layers, (layer) => [
      { kind: 'routed', modules: ['mlp'], ...routing(layer), renormalise, width: expertWidth },
      shared,
    ]);
    return {
      qkvBias: config.boolean('qkv_bias', true),
      oBias: false,
      qkNorm: 'none',
      clip: 0,
      window: readWindows(config, layers),
      feedForward,
    };
  },
};

/** `layer_types` says which layers slide; without it transformers takes every other one below `max_window_layers`. */
function readWindows(config: ConfigFields, layers: number): (layer: number) => number {
  const below = config.integer('max_window_layers', { min: 0 }, 28);
  const given = readSlidingLayers(config, layers);
  if (!config.boolean('use_sliding_window', false)) {
    if (given?.includes(true))
      config.fail('use_sliding_window', 'is not true', 'true, since layer_types has sliding layers');
    // Read but unused: transformers writes a number here either way.
    config.raw('sliding_window');
    return () => 0;
  }
  const sliding = given ?? Array.from({ length: layers }, (_, layer) => layer % 2 === 0 && layer < below);
  const window = config.integer('sliding_window', {}, config.mentions('sliding_window') ? undefined : 4096);
  return (layer) => (sliding[layer] ? window : 0);
}
