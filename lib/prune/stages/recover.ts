/** The stage that trains what pruning left of the experts until they give again what they gave before. */
import { z } from 'zod';
import { EspalierError } from '../../errors.ts';
import { native, runJob } from '../../native.ts';
import { nativeMatrix, nativeWeight } from '../../runtime/native-spec.ts';
import { defaultEpochs } from '../methods.ts';
import { recoveryBytes } from './memory.ts';
import type { StageKind } from './stage.ts';

export interface RecoverOptions {
  /** Times that the calibration tokens are gone through. @default 16 */
  epochs?: number | undefined;
  /** Tokens of a step. @default 4096 */
  batch?: number | undefined;
  /**
   * Of Adam, relative to the root mean square of each matrix; it falls to 0 as a cosine. @default 0.02
   */
  learningRate?: number | undefined;
  /**
   * `gradual`: training starts from the dense weights and zeroes them little by little, those first that cost the experts
   * least, so that each expert ends with as many zeros as the `weights` stage gave it, but where training wants them.
   * `fixed`: the zeros of the `weights` stage stay where they are; n:m zeros always do. @default 'gradual'
   */
  zeros?: 'gradual' | 'fixed' | undefined;
  /**
   * In the last layer, compare next-token distributions (Kullback-Leibler divergence from the dense layer's) instead of
   * hidden states. @default true
   */
  logits?: boolean | undefined;
  /** Of the order of the tokens. @default 0 */
  seed?: number | undefined;
}

export const recoverOptions = {
  epochs: z.int().min(1).max(10_000).optional(),
  batch: z.int().min(1).max(1_048_576).optional(),
  learningRate: z.number().positive().max(1).optional(),
  zeros: z.enum(['gradual', 'fixed']).optional(),
  logits: z.boolean().optional(),
  seed: z.int().min(0).optional(),
};

export interface RecoverStage {
  readonly stage: 'recover';
  readonly epochs: number;
  readonly batch: number;
  readonly learningRate: number;
  readonly zeros: 'gradual' | 'fixed';
  readonly logits: boolean;
  readonly seed: number;
}

/**
 * A layer's experts are trained together to minimise ‖Σ g·E(x) - Σ g·E_dense(x)‖² over the calibration tokens, x and the
 * gates g being those of the pruned model: the layer's part of MoE-Pruner's expert-wise distillation (arXiv 2410.12013).
 */
export const recoverStage: StageKind<RecoverOptions, RecoverStage> = {
  name: 'recover',
  schema: z.strictObject(recoverOptions),
  resolve({ epochs = defaultEpochs, batch = 4096, learningRate = 0.02, zeros = 'gradual', logits = true, seed = 0 }) {
    return { stage: 'recover', epochs, batch, learningRate, zeros, logits, seed };
  },
  follow(before) {
    if (!before.some((stage) => 'values' in stage && stage.values !== 'float')) return;
    throw new EspalierError(
      'USAGE',
      'training would undo the rounding of the weights stage; round after it: quantize',
      {
        field: 'recover',
      },
    );
  },
  needsCalibration: () => true,
  dependsOnIsa: () => true,
  check() {},
  zeros: () => 0,
  steps: ({ epochs }) => [{ name: 'recover', weight: 65 * epochs }],
  needsDense: true,
  hiddenFiles: () => 5,
  memory: ({ batch, logits }, shape) => ({ each: 0, rest: recoveryBytes(batch, logits, shape) }),
  async run({ epochs, batch, learningRate, zeros, logits, seed }, context) {
    const { checkpoint, spec, layer, pruner, signal, source, calibrated } = context;
    if (calibrated === undefined) throw new Error('unreachable: the stage needs calibration');
    const isLast = layer === spec.layers.length - 1;
    const request = {
      ...calibrated,
      scratch: calibrated.input,
      epochs,
      batch,
      learningRate,
      gradual: zeros === 'gradual',
      seed,
      ...(isLast && logits
        ? { finalNorm: nativeWeight(checkpoint, spec.finalNorm), head: nativeMatrix(checkpoint, spec.head) }
        : {}),
    };
    const experts = await runJob(
      () =>
        native().prunerRecover(pruner, request, [...checkpoint.files], (done, total) =>
          context.progress(0, done, total),
        ),
      signal,
      { file: source },
    );
    return {
      experts: experts.map(({ part, expert, tokens, trained, before, after, epoch }) => ({
        part,
        expert,
        tokens,
        recovery: trained ? { before, after, epoch } : null,
      })),
    };
  },
  describe: ({ epochs, zeros }) =>
    `recovery, ${epochs} ${epochs === 1 ? 'epoch' : 'epochs'}${zeros === 'gradual' ? ', zeros chosen while training' : ''}`,
};
