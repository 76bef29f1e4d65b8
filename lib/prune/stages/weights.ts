/** The stage that zeroes weights of the experts. */
import { z } from 'zod';
import { EspalierError } from '../../errors.ts';
import type { NativePlan } from '../../native.ts';
import { type Budget, checkFits, checkSparsity, describeBudget, parsePattern } from '../budget.ts';
import { type Method, type MethodName, methodNames, methods, nativePlan } from '../methods.ts';
import { runPlan } from './run-plan.ts';
import type { StageKind } from './stage.ts';

export interface WeightsOptions {
  /** How weights are scored and updated; see `methods`. @default 'moe-pruner' */
  method?: MethodName | undefined;
  /**
   * Fraction of the weights to zero, between 0 and 1: floor(sparsity · columns) of every row in the row-wise methods, one
   * threshold for the matrix (magnitude) or for each 128 columns (SparseGPT). @default 0.5
   */
  sparsity?: number | undefined;
  /** `N:M`: keep N of each M consecutive inputs. Excludes `sparsity`. */
  pattern?: string | undefined;
  /** Weight each token's input by its gate in the statistics. @default true for moe-pruner, false for the others */
  routerWeighting?: boolean | undefined;
  /**
   * What kept weights are rounded to in the same pass, on the grids of int8 and int4 packing; a method with weight update
   * makes up for the rounding too. `float`: not rounded. @default 'float'
   */
  values?: NativePlan['values'] | undefined;
}

export interface WeightsStage {
  readonly stage: 'weights';
  readonly method: MethodName;
  readonly budget: Budget;
  readonly routerWeighting: boolean;
  readonly values: NativePlan['values'];
}

/** Those that may stand at the top of a recipe. */
export const weightsOptions = {
  method: z.enum(methodNames as [MethodName, ...MethodName[]]).optional(),
  sparsity: z.number().optional(),
  pattern: z.string().optional(),
  routerWeighting: z.boolean().optional(),
};

export const weightsStage: StageKind<WeightsOptions, WeightsStage> = {
  name: 'weights',
  schema: z.strictObject({ ...weightsOptions, values: z.enum(['float', 'int8', 'int4']).optional() }),
  resolve({ method = 'moe-pruner', sparsity, pattern, routerWeighting, values = 'float' }) {
    if (sparsity !== undefined && pattern !== undefined) {
      throw new EspalierError('USAGE', 'sparsity and pattern exclude each other; give one of them', {
        field: 'pattern',
      });
    }
    const row: Method = methods[method];
    const weighted = routerWeighting ?? row.routerWeighting;
    if (weighted !== row.routerWeighting && row.routerWeightingFixed !== undefined) {
      throw new EspalierError('USAGE', `routerWeighting cannot be ${weighted}: ${row.routerWeightingFixed}`, {
        field: 'routerWeighting',
      });
    }
    const budget = pattern === undefined ? checkSparsity(sparsity ?? 0.5) : parsePattern(pattern);
    return { stage: 'weights', method, budget, routerWeighting: weighted, values };
  },
  needsCalibration: ({ method }) => methods[method].statistics !== 'none',
  dependsOnIsa: ({ method }) => methods[method].statistics !== 'none',
  check: ({ budget }, spec) => checkFits(budget, spec),
  zeros({ method, budget }, rows, cols) {
    if ('group' in budget) return rows * (cols / budget.group) * (budget.group - budget.keep);
    const { sparsity } = budget;
    const { comparison, block } = nativePlan(method, budget);
    if (comparison === 'row') return rows * Math.floor(sparsity * cols);
    const width = comparison === 'matrix' ? cols : block;
    let zeros = 0;
    for (let first = 0; first < cols; first += width) {
      zeros += Math.floor(sparsity * rows * Math.min(width, cols - first));
    }
    return zeros;
  },
  steps: () => [
    { name: 'statistics', weight: 50 },
    { name: 'weights', weight: 25 },
  ],
  async run({ method, budget, routerWeighting, values }, context) {
    const { statistics } = methods[method];
    if (statistics !== 'none') {
      await context.collect({ gram: statistics === 'gram', routerWeighted: routerWeighting }, 0);
    }
    return await runPlan(context, nativePlan(method, budget, values), 1);
  },
  describe: ({ method, budget, routerWeighting, values }) =>
    `${method}${routerWeighting ? ' with router weighting' : ''}, ${describeBudget(budget)}${values === 'float' ? '' : ` and ${values}`}`,
};
