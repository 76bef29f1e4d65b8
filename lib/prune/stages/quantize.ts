/**
 * The stage that rounds the weights of the experts to the grids that int8 and int4 are packed with, each rounding error made
 * up for by the weights to its right (GPTQ, arXiv 2210.17323). Zeros stay zeros. What it leaves is an ordinary checkpoint;
 * packed as the same values, or run with them (`--weights experts=int4`), it keeps its codes and scales.
 */
import { z } from 'zod';
import { defaultShrinkage, quantizePlan } from '../methods.ts';
import { planMemory } from './memory.ts';
import { runPlan } from './run-plan.ts';
import type { StageKind } from './stage.ts';

export interface QuantizeOptions {
  /** What weights are rounded to, with one f16 scale for 64 inputs of a row. @default 'int4' */
  values?: 'int8' | 'int4' | undefined;
  /** Weight each token's input by its gate in the statistics. @default true */
  routerWeighting?: boolean | undefined;
  /** Of the Gram matrices of experts that saw few tokens: see `defaultShrinkage`. @default 2 */
  shrinkage?: number | undefined;
}

export const quantizeOptions = {
  values: z.enum(['int8', 'int4']).optional(),
  routerWeighting: z.boolean().optional(),
  shrinkage: z.number().min(0).max(1000).optional(),
};

export interface QuantizeStage {
  readonly stage: 'quantize';
  readonly values: 'int8' | 'int4';
  readonly routerWeighting: boolean;
  readonly shrinkage: number;
}

export const quantizeStage: StageKind<QuantizeOptions, QuantizeStage> = {
  name: 'quantize',
  schema: z.strictObject(quantizeOptions),
  resolve: ({ values = 'int4', routerWeighting = true, shrinkage = defaultShrinkage }) => ({
    stage: 'quantize',
    values,
    routerWeighting,
    shrinkage,
  }),
  needsCalibration: () => true,
  dependsOnIsa: () => true,
  check() {},
  zeros: () => 0,
  steps: () => [
    { name: 'statistics', weight: 50 },
    { name: 'quantize', weight: 25 },
  ],
  hiddenFiles: () => 1,
  memory: ({ values, shrinkage }, shape) => planMemory(quantizePlan(values, shrinkage), 'gram', shape),
  async run({ values, routerWeighting, shrinkage }, context) {
    await context.collect({ gram: true, pooled: shrinkage > 0, routerWeighted: routerWeighting }, 0);
    return await runPlan(context, quantizePlan(values, shrinkage), 1);
  },
  describe: ({ values, routerWeighting }) => `${values}${routerWeighting ? ' with router weighting' : ''}`,
};
