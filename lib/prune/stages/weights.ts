/** The stage that zeroes weights of the experts. */
import { z } from 'zod';
import { EspalierError } from '../../errors.ts';
import { expertMatrices } from '../../models/targets.ts';
import { type NativePlan, native, runJob } from '../../native.ts';
import { type Budget, checkFits, checkSparsity, describeBudget, parsePattern } from '../budget.ts';
import { defaultShrinkage, type Method, type MethodName, methodNames, methods, nativePlan } from '../methods.ts';
import { owlMultiple, owlSparsities } from '../owl.ts';
import { planMemory } from './memory.ts';
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
  /**
   * How layers share an unstructured budget: each meets it, or those with more outliers keep more (`owl`). The layers together
   * meet it either way. @default 'uniform'
   */
  layers?: 'uniform' | 'owl' | undefined;
  /**
   * How the experts of a layer share it: each matrix meets it, or the same matrices of all experts compete by |W_ij| · ‖X_j‖,
   * none losing more than halfway between the budget and everything (`balanced`). @default 'uniform'
   */
  experts?: 'uniform' | 'balanced' | undefined;
  /**
   * How far the Gram matrices of experts that saw few tokens are shrunk towards the layer's, in methods with weight update:
   * see `defaultShrinkage`. 0: not at all. @default 2
   */
  shrinkage?: number | undefined;
}

export interface WeightsStage {
  readonly stage: 'weights';
  readonly method: MethodName;
  readonly budget: Budget;
  readonly routerWeighting: boolean;
  readonly values: NativePlan['values'];
  readonly layers: 'uniform' | 'owl';
  readonly experts: 'uniform' | 'balanced';
  readonly shrinkage: number;
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
  schema: z.strictObject({
    ...weightsOptions,
    values: z.enum(['float', 'int8', 'int4']).optional(),
    layers: z.enum(['uniform', 'owl']).optional(),
    experts: z.enum(['uniform', 'balanced']).optional(),
    shrinkage: z.number().min(0).max(1000).optional(),
  }),
  resolve({
    method = 'moe-pruner',
    sparsity,
    pattern,
    routerWeighting,
    values = 'float',
    layers = 'uniform',
    experts = 'uniform',
    shrinkage = defaultShrinkage,
  }) {
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
    for (const [field, wish] of [
      ['layers', layers],
      ['experts', experts],
    ] as const) {
      if (wish === 'uniform') continue;
      if ('group' in budget) {
        throw new EspalierError(
          'USAGE',
          `${field}: ${wish} shares out an unstructured sparsity; a pattern is the same everywhere`,
          { field },
        );
      }
      if (row.statistics === 'none') {
        throw new EspalierError(
          'USAGE',
          `${field}: ${wish} goes by calibration data, which ${method} does not look at`,
          { field },
        );
      }
    }
    return { stage: 'weights', method, budget, routerWeighting: weighted, values, layers, experts, shrinkage };
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
  hiddenFiles: ({ method }) => (methods[method].statistics === 'gram' ? 1 : 0),
  memory: ({ method, budget, values, shrinkage }, shape) =>
    planMemory(nativePlan(method, budget, { values, shrinkage }), methods[method].statistics, shape),
  async prepare({ budget, layers, routerWeighting }, { spec, walk, signal }) {
    if (layers === 'uniform' || 'group' in budget) return undefined;
    const shares = await walk(async ({ pruner, input, lengths }) => {
      const collect = { gram: false, pooled: false, routerWeighted: routerWeighting, together: 0, scratch: '' };
      await runJob(() => native().prunerForward(pruner, { input, lengths, collect }), signal);
      return await runJob(() => native().prunerOutliers(pruner, owlMultiple), signal);
    });
    const sizes = shares.map(() => 0);
    for (const { layer, source } of expertMatrices(spec)) sizes[layer]! += source.shape.reduce((a, b) => a * b);
    return owlSparsities(shares, sizes, budget.sparsity);
  },
  async run({ method, budget: given, routerWeighting, values, experts, shrinkage }, context) {
    const byLayer = context.prepared as readonly number[] | null;
    const budget = byLayer === null ? given : { sparsity: byLayer[context.layer]! };
    const meeting = experts === 'balanced' ? 'experts' : 'each';
    const { statistics } = methods[method];
    if (statistics !== 'none') {
      const gram = statistics === 'gram';
      await context.collect({ gram, pooled: gram && shrinkage > 0, routerWeighted: routerWeighting }, 0);
    }
    return await runPlan(context, nativePlan(method, budget, { values, meeting, shrinkage }), 1);
  },
  describe: ({ method, budget, routerWeighting, values }) =>
    `${method}${routerWeighting ? ' with router weighting' : ''}, ${describeBudget(budget)}${values === 'float' ? '' : ` and ${values}`}`,
};
