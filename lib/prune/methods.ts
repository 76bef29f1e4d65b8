/**
 * The pruning methods, each a row that says what it takes from the four stages: statistics → score → choice → update.
 * W is a weight matrix [outputs, inputs], X the calibration inputs that reached its expert, g the gate of each token.
 */
import type { NativePlan } from '../native.ts';
import { type Budget, nativeBudget } from './budget.ts';

export interface Method {
  /** What the calibration pass collects: nothing, ‖X_j‖ of each input column, or the Gram matrix Σ x xᵀ too. */
  readonly statistics: 'none' | 'norms' | 'gram';
  readonly score: NativePlan['score'];
  /** Which weights an unstructured choice compares; n:m always compares within its groups. */
  readonly comparison: NativePlan['comparison'];
  readonly update: NativePlan['update'];
  /** Whether each token's input is multiplied by its gate in the statistics, unless the user says otherwise. */
  readonly routerWeighting: boolean;
  /** Set where the method is not itself without (or with) router weighting. */
  readonly routerWeightingFixed?: string;
  readonly summary: string;
  readonly source: string;
}

export const methods = {
  magnitude: {
    statistics: 'none',
    score: 'magnitude',
    comparison: 'matrix',
    update: 'none',
    routerWeighting: false,
    routerWeightingFixed: 'magnitude looks at no inputs, so there is nothing to weight',
    summary: '|W|, one threshold for each matrix',
    source: 'Han et al. 2015, arXiv 1506.02626',
  },
  wanda: {
    statistics: 'norms',
    score: 'activation',
    comparison: 'row',
    update: 'none',
    routerWeighting: false,
    summary: '|W_ij| · ‖X_j‖₂, an equal share of every row',
    source: 'Sun et al. 2024, arXiv 2306.11695, Eq. 1',
  },
  'moe-pruner': {
    statistics: 'norms',
    score: 'activation',
    comparison: 'row',
    update: 'none',
    routerWeighting: true,
    routerWeightingFixed: 'moe-pruner is router-weighted by definition; without it the method is wanda',
    summary: '|W_ij| · ‖X_j · g‖₂, an equal share of every row',
    source: 'Xie et al. 2024, arXiv 2410.12013, Eq. 9',
  },
  ria: {
    statistics: 'norms',
    score: 'relative',
    comparison: 'row',
    update: 'none',
    routerWeighting: false,
    summary: '(|W_ij| / Σ|column j| + |W_ij| / Σ|row i|) · ‖X_j‖₂^½, an equal share of every row',
    source: 'Zhang et al. 2024, Plug-and-Play (ICLR), relative importance and activations',
  },
  sparsegpt: {
    statistics: 'gram',
    score: 'second-order',
    comparison: 'block',
    update: 'sparsegpt',
    routerWeighting: false,
    summary: 'W_ij² / U_jj² with H⁻¹ = UᵀU, H = Σ x xᵀ; what is kept makes up for what goes',
    source: 'Frantar and Alistarh 2023, arXiv 2301.00774, Algorithm 1',
  },
  alps: {
    statistics: 'gram',
    score: 'second-order',
    comparison: 'matrix',
    update: 'alps',
    routerWeighting: false,
    summary: 'min ‖X (W − D)ᵀ‖ over D within the budget: ADMM with a growing penalty, then conjugate gradients',
    source: 'Meng et al. 2024, arXiv 2406.07831, Algorithm 1',
  },
} as const satisfies Record<string, Method>;

export type MethodName = keyof typeof methods;
export const methodNames = Object.keys(methods) as MethodName[];

export interface PlanOptions {
  /** What kept weights are rounded to. @default 'float' */
  readonly values?: NativePlan['values'];
  /** @default 'each' */
  readonly meeting?: NativePlan['meeting'];
  /** @default defaultShrinkage */
  readonly shrinkage?: number;
}

/**
 * How far the Gram matrix of an expert that saw few tokens is shrunk, in a weight update: by the share
 * s = shrinkage · width / (shrinkage · width + tokens), towards that of all experts of the layer, or towards its diagonal for
 * the inputs of down projections. Chosen on held-out text at 50 %: a great gain from few tokens (tiny-mixtral, SparseGPT, 512
 * tokens an expert: 31.28 to 28.32), none to speak of from 16,384; there, ALPS at 70 % is half a percent better with 0, which
 * is each method as published.
 */
export const defaultShrinkage = 2;

/** Times that recovery goes through the calibration tokens. */
export const defaultEpochs = 16;

/** What the native side runs. */
export function nativePlan(
  method: MethodName,
  budget: Budget,
  { values = 'float', meeting = 'each', shrinkage = defaultShrinkage }: PlanOptions = {},
): NativePlan {
  const { score, comparison, update } = methods[method];
  return { score, comparison, update, values, ...nativeBudget(budget), meeting, damping: 0.01, shrinkage, block: 128 };
}

/** Rounding with error compensation of whatever is not zero. */
export function quantizePlan(values: 'int8' | 'int4', shrinkage: number): NativePlan {
  return { ...nativePlan('sparsegpt', { sparsity: 0 }, { values, shrinkage }), comparison: 'given' };
}
