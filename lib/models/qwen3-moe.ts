/** Qwen3-MoE: q and k normalised head by head, its own head_dim, dense layers in between, no shared expert. */

import type { ConfigFields } from './config.ts';
import { limits } from './config.ts';
import type { Family } from './decoder.ts';
import { readRouting } from './experts-config.ts';
import { readFeedForwards, requireUniformLayers } from './fields.ts';

export const qwen3Moe: Family = {
  modelType: 'qwen3_moe',
  architecture: 'Qwen3MoeForCausalLM',
  defaults: { kvHeads: 4, normEpsilon: 1e-6, ropeTheta: 1e4 },
  plan(config, { layers }) {
    const window = readWindow(config);
    requireUniformLayers(config, layers, window);
    const bias = config.boolean('attention_bias', false);
    const routing = readRouting(config, 'num_experts', layers);
    const renormalise = config.boolean('norm_topk_prob', false);
    const width = config.integer('moe_intermediate_size', { max: limits.width });
    return {
      qkvBias: bias,
      oBias: bias,
      qkNorm: 'head',
      clip: 0,
      window: () => window,
      feedForward: readFeedForwards(config, layers, (layer) => [
        { kind: 'routed', modules: ['mlp'], ...routing(layer), renormalise, width },
      ]),
    };
  },
};

function readWindow(config: ConfigFields): number {
  const lowest = config.optionalInteger('max_window_layers', { min: 0 });
  if (!config.boolean('use_sliding_window', false)) {
    config.raw('sliding_window');
    return 0;
  }
  const window = config.optionalInteger('sliding_window') ?? (config.mentions('sliding_window') ? 0 : 4096);
  if (window > 0 && lowest !== undefined && lowest > 0) {
    config.warn('max_window_layers has no effect: as in transformers 5, every layer of this family gets the window.');
  }
  return window;
}
