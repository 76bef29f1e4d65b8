/** Mixtral (Jiang et al. 2024): experts in every layer, gates renormalised over the top k, one window for all layers. */
import { limits } from './config.ts';
import type { Family } from './decoder.ts';
import { readRouting } from './experts-config.ts';
import { requireUniformLayers } from './fields.ts';

export const mixtral: Family = {
  modelType: 'mixtral',
  architecture: 'MixtralForCausalLM',
  defaults: { kvHeads: 8, normEpsilon: 1e-5, ropeTheta: 1e6, bosTokenId: 1, eosTokenId: 2 },
  plan(config, { layers }) {
    const window = config.optionalInteger('sliding_window') ?? 0;
    requireUniformLayers(config, layers, window);
    const routing = readRouting(config, 'num_local_experts', layers);
    const width = config.integer('intermediate_size', { max: limits.width });
    // The second is what transformers 5 writes when it keeps the experts fused.
    const modules = ['block_sparse_moe', 'mlp'];
    return {
      qkvBias: false,
      oBias: false,
      qkNorm: 'none',
      clip: 0,
      window: () => window,
      feedForward: (layer) => [{ kind: 'routed', modules, ...routing(layer), renormalise: true, width }],
    };
  },
};
