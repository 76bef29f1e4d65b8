/** OLMoE (Muennighoff et al. 2024): q and k normalised over the whole projection, optional clamp of q, k and v. */
import { limits } from './config.ts';
import type { Family } from './decoder.ts';
import { readRouting } from './experts-config.ts';
import { requireUniformLayers } from './fields.ts';

export const olmoe: Family = {
  modelType: 'olmoe',
  architecture: 'OlmoeForCausalLM',
  defaults: { normEpsilon: 1e-5, ropeTheta: 1e4, eosTokenId: 50_279 },
  plan(config, { hidden, heads, headDim, layers }) {
    if (heads * headDim !== hidden) {
      // The weight of the norm on q has hidden_size elements.
      config.fail('head_dim', `is ${headDim}`, `hidden_size / num_attention_heads, which is ${hidden / heads}`);
    }
    requireUniformLayers(config, layers, 0);
    const bias = config.boolean('attention_bias', false);
    const routing = readRouting(config, 'num_experts', layers);
    const renormalise = config.boolean('norm_topk_prob', false);
    const width = config.integer('intermediate_size', { max: limits.width });
    return {
      qkvBias: bias,
      oBias: bias,
      qkNorm: 'projection',
      clip: config.optionalNumber('clip_qkv') ?? 0,
      window: () => 0,
      feedForward: (layer) => [{ kind: 'routed', modules: ['mlp'], ...routing(layer), renormalise, width }],
    };
  },
};
