/**
 * The pruning methods, each a row that says what it takes from the four stages: statistics → score → choice → update.
 * W is a weight matrix [outputs, inputs], X the calibration inputs that reached its expert, g the gate of each token.
 */
import { EspalierError } from '../errors.ts';
import type { NativePlan } from '../native.ts';

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
  sparsegpt: {
    statistics: 'gram',
    score: 'second-order',
    comparison: 'block',
    update: 'sparsegpt',
    routerWeighting: false,
    summary: 'W_ij² / U_jj² with H⁻¹ = UᵀU, H = Σ x xᵀ; what is kept makes up for what goes',
    source: 'Frantar and Alistarh 2023, arXiv 2301.00774, Algorithm 1',
  },
} as const satisfies Record<string, Method>;

export type MethodName = keyof typeof methods;
export const methodNames = Object.keys(methods) as MethodName[];

/** An unstructured fraction, or n kept of every m consecutive inputs. */
export type Budget = { readonly sparsity: number } | { readonly keep: number; readonly group: number };

/** Reads `N:M`. @throws USAGE naming the field. */
export function parsePattern(text: string): Budget {
  const match = /^(\d{1,3}):(\d{1,3})$/.exec(text);
  const [keep, group] = match === null ? [0, 0] : [Number(match[1]), Number(match[2])];
  if (keep < 1 || keep >= group) {
    throw new EspalierError(
      'USAGE',
      `pattern must be N:M with 1 ≤ N < M, for example 2:4; found ${JSON.stringify(text)}`,
      {
        field: 'pattern',
      },
    );
  }
  return { keep, group };
}

/** @throws USAGE unless 0 < sparsity < 1. */
export function checkSparsity(sparsity: number): Budget {
  if (!(sparsity > 0 && sparsity < 1)) {
    throw new EspalierError(
      'USAGE',
      `sparsity must lie between 0 and 1 (exclusive), for example 0.5; found ${sparsity}`,
      {
        field: 'sparsity',
      },
    );
  }
  return { sparsity };
}

export function describeBudget(budget: Budget): string {
  return 'sparsity' in budget ? `${+(budget.sparsity * 100).toFixed(2)} %` : `${budget.keep}:${budget.group}`;
}

/** What the native side runs. */
export function nativePlan(method: MethodName, budget: Budget): NativePlan {
  const { score, comparison, update } = methods[method];
  const amount =
    'sparsity' in budget
      ? { sparsity: budget.sparsity, keep: 0, group: 0 }
      : { sparsity: 0, keep: budget.keep, group: budget.group };
  return { score, comparison, update, ...amount, damping: 0.01, block: 128 };
}
