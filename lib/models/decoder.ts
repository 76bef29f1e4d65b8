/**
 * From what a family reads in config.json to the engine's ModelSpec. Families differ in data (`DecoderPlan`); the way from
 * a plan and the tensors of a checkpoint to a spec is one.
 */
import type { ConfigFields } from './config.ts';
import { limits, show } from './config.ts';
import { type Rope, readRope } from './rope.ts';
import type { AttentionSpec, FeedForwardPart, LayerSpec, ModelSpec, WeightSource } from './spec.ts';
import { mismatch, type Weights } from './weights.ts';

/** What transformers assumes where a config of the family leaves a field out. */
export interface FamilyDefaults {
  /** Absent: as many as `num_attention_heads`. */
  readonly kvHeads?: number;
  readonly normEpsilon: number;
  readonly ropeTheta: number;
  readonly bosTokenId?: number;
  readonly eosTokenId?: number;
}

/** The fields that every family has. */
export interface DecoderSize {
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocabulary: number;
  readonly normEpsilon: number;
  readonly tied: boolean;
  readonly rope: Rope;
}

/** One summand of a layer's feed-forward. Modules are named below `model.layers.<n>.` */
export type FeedForwardPlan =
  | {
      readonly kind: 'dense';
      readonly module: string;
      readonly width: number /** Scales by its sigmoid. */;
      readonly gate?: string;
    }
  | {
      readonly kind: 'routed';
      /** The first that the checkpoint has is taken. */
      readonly modules: readonly string[];
      readonly experts: number;
      /** The expert of each router row, where they are not one to one. */
      readonly expertOfRow?: readonly number[];
      readonly topK: number;
      readonly renormalise: boolean;
      readonly width: number;
    };

export interface DecoderPlan {
  readonly qkvBias: boolean;
  readonly oBias: boolean;
  /** RMSNorm on q and k: of each head or of the whole projection. */
  readonly qkNorm: 'none' | 'head' | 'projection';
  /** 0 for none. */
  readonly clip: number;
  /** Attention window of a layer, 0 for none. */
  window(layer: number): number;
  feedForward(layer: number): readonly FeedForwardPlan[];
}

/** A model family: one file, one object, one row in registry.ts. */
export interface Family {
  /** `model_type` of config.json. */
  readonly modelType: string;
  /** The class in `architectures`. */
  readonly architecture: string;
  readonly defaults: FamilyDefaults;
  /** Reads every field that matters to this family; throws `CONFIG`. */
  plan(config: ConfigFields, size: DecoderSize): DecoderPlan;
}

export interface SpecialTokens {
  readonly bosTokenId: number | undefined;
  readonly eosTokenIds: readonly number[];
}

export function readSize(config: ConfigFields, defaults: FamilyDefaults): DecoderSize {
  const hidden = config.integer('hidden_size', { max: limits.width });
  const heads = config.integer('num_attention_heads', { max: limits.heads });
  const kvFallback = config.mentions('num_key_value_heads') ? heads : (defaults.kvHeads ?? heads);
  const kvHeads = config.integer('num_key_value_heads', { max: heads }, kvFallback);
  if (heads % kvHeads !== 0) {
    config.fail('num_key_value_heads', `is ${kvHeads}`, `a divisor of num_attention_heads, which is ${heads}`);
  }
  const stated = config.optionalInteger('head_dim', { max: limits.headDim });
  const headDim = stated ?? hidden / heads;
  if (headDim % 2 !== 0 || headDim > limits.headDim) {
    const found = stated === undefined ? `follows as hidden_size ${hidden} / ${heads} heads` : `is ${stated}`;
    config.fail('head_dim', found, `an even integer from 2 to ${limits.headDim}`);
  }
  return {
    hidden,
    heads,
    kvHeads,
    headDim,
    layers: config.integer('num_hidden_layers', { max: limits.layers }),
    vocabulary: config.integer('vocab_size', { max: limits.vocabulary }),
    normEpsilon: config.number('rms_norm_eps', defaults.normEpsilon),
    tied: config.boolean('tie_word_embeddings', false),
    rope: readRope(config, headDim, defaults.ropeTheta),
  };
}

/** Token ids of config.json; those of generation_config.json go before them. */
export function readSpecialTokens(
  config: ConfigFields,
  generation: ConfigFields | undefined,
  defaults: FamilyDefaults,
  vocabulary: number,
): SpecialTokens {
  const read = (field: 'bos_token_id' | 'eos_token_id', fallback: number | undefined): number[] => {
    const range = { min: 0, max: limits.vocabulary };
    const own =
      config.oneOrMoreIntegers(field, range) ?? (config.mentions(field) || fallback === undefined ? [] : [fallback]);
    const source = generation?.mentions(field) ? generation : config;
    const ids = generation?.oneOrMoreIntegers(field, range) ?? own;
    const outside = ids.filter((id) => id >= vocabulary);
    // A default that the vocabulary lacks was not chosen by anyone.
    if (outside.length > 0 && source.mentions(field)) {
      source.warn(`${field} ${show(outside)} lies outside the vocabulary of ${vocabulary} tokens and is ignored.`);
    }
    return ids.filter((id) => id < vocabulary);
  };
  return {
    bosTokenId: read('bos_token_id', defaults.bosTokenId)[0],
    eosTokenIds: read('eos_token_id', defaults.eosTokenId),
  };
}

/** Builds the spec; every tensor is looked up and checked on the way (`MISMATCH`). */
export function buildDecoder(
  family: string,
  size: DecoderSize,
  plan: DecoderPlan,
  tokens: SpecialTokens,
  weights: Weights,
): ModelSpec {
  if (weights.layers > size.layers) {
    const extra = `model.layers.${size.layers}.`;
    throw mismatch(extra, `is in the checkpoint, but config.json says num_hidden_layers is ${size.layers}`);
  }
  const { embedding, head } = endsOf(size, weights);
  const layers = Array.from({ length: size.layers }, (_, layer) => buildLayer(layer, size, plan, weights));
  return {
    family,
    hiddenSize: size.hidden,
    vocabularySize: size.vocabulary,
    maxPositions: size.rope.maxPositions,
    normEpsilon: size.normEpsilon,
    rope: { inverseFrequencies: size.rope.inverseFrequencies, scale: size.rope.scale },
    embedding,
    finalNorm: weights.vector('model.norm.weight', size.hidden),
    head,
    layers,
    ...tokens,
  };
}

/** Where a tied model stores both ends, transformers uses each as stored; where it stores one, that serves as both. */
function endsOf(
  { tied, vocabulary, hidden }: DecoderSize,
  weights: Weights,
): { embedding: WeightSource; head: WeightSource } {
  const names = { embedding: 'model.embed_tokens.weight', head: 'lm_head.weight' };
  if (tied && !weights.has(names.head)) names.head = names.embedding;
  else if (tied && !weights.has(names.embedding)) names.embedding = names.head;
  const embedding = weights.matrix(names.embedding, vocabulary, hidden);
  const head = names.head === names.embedding ? embedding : weights.matrix(names.head, vocabulary, hidden);
  return { embedding, head };
}

function buildLayer(layer: number, size: DecoderSize, plan: DecoderPlan, weights: Weights): LayerSpec {
  const module = `model.layers.${layer}`;
  return {
    attentionNorm: weights.vector(`${module}.input_layernorm.weight`, size.hidden),
    attention: buildAttention(layer, `${module}.self_attn`, size, plan, weights),
    feedForwardNorm: weights.vector(`${module}.post_attention_layernorm.weight`, size.hidden),
    feedForward: plan.feedForward(layer).map((part) => buildPart(module, part, size.hidden, weights)),
  };
}

function buildAttention(
  layer: number,
  module: string,
  size: DecoderSize,
  plan: DecoderPlan,
  weights: Weights,
): AttentionSpec {
  const { hidden, heads, kvHeads, headDim } = size;
  const [queries, keys] = [heads * headDim, kvHeads * headDim];
  const norms = { none: undefined, head: [headDim, headDim], projection: [queries, keys] } as const;
  const [qNorm, kNorm] = norms[plan.qkNorm] ?? [];
  return {
    heads,
    kvHeads,
    headDim,
    scale: headDim ** -0.5,
    window: plan.window(layer),
    clip: plan.clip,
    q: weights.matrix(`${module}.q_proj.weight`, queries, hidden),
    k: weights.matrix(`${module}.k_proj.weight`, keys, hidden),
    v: weights.matrix(`${module}.v_proj.weight`, keys, hidden),
    o: weights.matrix(`${module}.o_proj.weight`, hidden, queries),
    ...(plan.qkvBias && {
      qBias: weights.vector(`${module}.q_proj.bias`, queries),
      kBias: weights.vector(`${module}.k_proj.bias`, keys),
      vBias: weights.vector(`${module}.v_proj.bias`, keys),
    }),
    ...(plan.oBias && { oBias: weights.vector(`${module}.o_proj.bias`, hidden) }),
    ...(qNorm !== undefined && { qNorm: weights.vector(`${module}.q_norm.weight`, qNorm) }),
    ...(kNorm !== undefined && { kNorm: weights.vector(`${module}.k_norm.weight`, kNorm) }),
  };
}

function buildPart(layer: string, part: FeedForwardPlan, hidden: number, weights: Weights): FeedForwardPart {
  if (part.kind === 'dense') {
    const mlp = weights.mlp(`${layer}.${part.module}`, hidden, part.width);
    return part.gate === undefined
      ? { kind: 'dense', mlp }
      : { kind: 'dense', mlp, gate: weights.matrix(`${layer}.${part.gate}.weight`, 1, hidden) };
  }
  const { experts, topK, renormalise, width } = part;
  const modules = part.modules.map((module) => `${layer}.${module}`);
  const module = modules.find((name) => weights.has(`${name}.gate.weight`)) ?? modules[0] ?? layer;
  const rows = part.expertOfRow?.length ?? experts;
  const weight = weights.router(module, rows, hidden);
  const expertOfRow = part.expertOfRow ?? Array.from({ length: rows }, (_, row) => row);
  return {
    kind: 'routed',
    router: { weight, topK, renormalise, expertOfRow },
    experts: weights.experts(module, experts, hidden, width),
  };
}
