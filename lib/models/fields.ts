/** Groups of config fields that more than one family has. */
import { type ConfigFields, limits, show } from './config.ts';
import type { FeedForwardPlan } from './decoder.ts';

/** `layer_types` as one flag a layer, true for sliding attention; undefined where the config has none. */
export function readSlidingLayers(config: ConfigFields, layers: number): boolean[] | undefined {
  const types = config.texts('layer_types');
  if (types === undefined) return undefined;
  if (types.length !== layers) {
    config.fail('layer_types', `has ${types.length} entries`, `one for each of the ${layers} layers`);
  }
  const foreign = types.find((type) => type !== 'full_attention' && type !== 'sliding_attention');
  if (foreign !== undefined) {
    config.fail('layer_types', `has ${show(foreign)}`, '"full_attention" or "sliding_attention"');
  }
  return types.map((type) => type === 'sliding_attention');
}

/** For families that give every layer the same window: `layer_types`, where present, must say so too. */
export function requireUniformLayers(config: ConfigFields, layers: number, window: number): void {
  const sliding = readSlidingLayers(config, layers);
  if (sliding?.some((flag) => flag !== window > 0)) {
    const expected = window > 0 ? 'sliding_attention' : 'full_attention';
    config.fail('layer_types', 'contradicts sliding_window', `"${expected}" for every layer of this family`);
  }
}

/**
 * Layers with experts, Qwen's way: those whose number, counted from 1, is a multiple of `decoder_sparse_step` and that
 * `mlp_only_layers` (counted from 0) does not name. The others are dense with `intermediate_size`.
 */
export function readFeedForwards(
  config: ConfigFields,
  layers: number,
  sparse: (layer: number) => readonly FeedForwardPlan[],
): (layer: number) => readonly FeedForwardPlan[] {
  const step = config.integer('decoder_sparse_step', { max: limits.positions }, 1);
  const dense = new Set(config.integers('mlp_only_layers', { min: 0 }) ?? []);
  const isSparse = Array.from({ length: layers }, (_, layer) => (layer + 1) % step === 0 && !dense.has(layer));
  const range = { max: limits.width };
  if (isSparse.every(Boolean)) {
    config.optionalInteger('intermediate_size', range);
    return sparse;
  }
  const plain: FeedForwardPlan[] = [
    { kind: 'dense', module: 'mlp', width: config.integer('intermediate_size', range) },
  ];
  return (layer) => (isSparse[layer] ? sparse(layer) : plain);
}
