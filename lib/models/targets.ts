/** Walks over a ModelSpec: the matrices that pruning is for, and how many parameters there are. */
import type { MlpSpec, ModelSpec, WeightSource } from './spec.ts';

export interface ExpertMatrix {
  readonly layer: number;
  /** Index into the layer's `feedForward`. */
  readonly part: number;
  /** Index into the part's `experts`. */
  readonly expert: number;
  readonly role: 'gate' | 'up' | 'down';
  readonly source: WeightSource;
}

const roles = ['gate', 'up', 'down'] as const;

/** The matrices of all routed experts, by layer, part, expert, then gate, up, down. */
export function* expertMatrices(spec: ModelSpec): Generator<ExpertMatrix> {
  for (const [layer, { feedForward }] of spec.layers.entries()) {
    for (const [index, part] of feedForward.entries()) {
      if (part.kind !== 'routed') continue;
      for (const [expert, mlp] of part.experts.entries()) {
        for (const role of roles) yield { layer, part: index, expert, role, source: mlp[role] };
      }
    }
  }
}

export interface ParameterCounts {
  /** Every stored weight once; a tied head is not counted again. */
  readonly total: number;
  /** Weights that one token passes through: all but the experts not chosen for it (their mean size, where they differ). */
  readonly active: number;
  /** Weights of routed experts, part of `total`. */
  readonly experts: number;
}

export function countParameters(spec: ModelSpec): ParameterCounts {
  let [total, active, experts] = [0, 0, 0];
  const add = (source: WeightSource | undefined) => {
    if (source === undefined) return;
    total += elements(source);
    active += elements(source);
  };
  add(spec.embedding);
  if (spec.head.tensor !== spec.embedding.tensor) add(spec.head);
  add(spec.finalNorm);
  for (const { attentionNorm, attention, feedForwardNorm, feedForward } of spec.layers) {
    const { q, k, v, o, qBias, kBias, vBias, oBias, qNorm, kNorm } = attention;
    for (const source of [attentionNorm, feedForwardNorm, q, k, v, o, qBias, kBias, vBias, oBias, qNorm, kNorm])
      add(source);
    for (const part of feedForward) {
      if (part.kind === 'dense') {
        for (const role of roles) add(part.mlp[role]);
        add(part.gate);
        continue;
      }
      add(part.router.weight);
      const all = sum(part.experts.map(mlpElements));
      total += all;
      experts += all;
      active += (all / part.experts.length) * part.router.topK;
    }
  }
  return { total, active: Math.round(active), experts };
}

function mlpElements(mlp: MlpSpec): number {
  return sum(roles.map((role) => elements(mlp[role])));
}

function elements({ shape }: WeightSource): number {
  return shape.reduce((product, size) => product * size, 1);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
