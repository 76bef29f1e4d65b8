/**
 * What a recipe is made of. A stage changes the routed experts of a layer; the stages of a recipe run one after the other
 * on each layer, before the next layer is read. A kind of stage is one file here and one row in index.ts; nothing else
 * knows which kinds there are.
 */
import type { z } from 'zod';
import type { Checkpoint } from '../../checkpoint/checkpoint.ts';
import type { LayerExperts } from '../../models/experts-config.ts';
import type { LayerSpec, ModelSpec } from '../../models/spec.ts';
import type { NativePruner, NativeStatistics, NativeSurvey, NativeSurveyRequest } from '../../native.ts';
import type { DenseWalk } from '../walk.ts';
import type { StageMemory, StageShape } from './memory.ts';

/** A stage with its defaults filled in; what else it has is its kind's own. */
export interface StageBase {
  readonly stage: string;
}

/** One expert of a layer after a stage, as far as the stage has something to say about it. */
export interface ExpertOutcome {
  /** Index of the feed-forward part among those of the layer. */
  readonly part: number;
  readonly expert: number;
  /** The experts of the source that it was made of, where the stage chose among them. */
  readonly from?: readonly number[];
  /** Calibration tokens that the router sent to it. */
  readonly tokens?: number;
  /** It saw no usable inputs and was pruned by magnitude. */
  readonly fallback?: boolean;
  /**
   * Mean loss of a held-out token before and after recovery and the epoch that was taken (0: none was better than the
   * start); null where too few tokens reached the expert to train it.
   */
  readonly recovery?: { readonly before: number; readonly after: number; readonly epoch: number } | null;
  /** It saw fewer tokens than some Gram matrix of it has columns. */
  readonly starved?: boolean;
  /** Roles of matrices left as they are because they hold NaN or infinity. */
  readonly skipped?: readonly string[];
}

/** A layer that is stored with other experts than the source's. */
export interface RestructuredLayer {
  /** Its tensors, under the names of the source. */
  readonly layer: LayerSpec;
  /** The bytes of those that are neither the source's nor an expert's. */
  readonly tensors: ReadonlyMap<string, Uint8Array>;
  /** The expert in memory that a stored one is. */
  expertOf(part: number, expert: number): number;
}

export interface StageOutcome {
  readonly experts: readonly ExpertOutcome[];
  /** For each part the medians of NativeSurvey.gateRatios. */
  readonly gateRatios?: readonly (readonly number[])[];
  readonly restructured?: RestructuredLayer;
}

/** A step within a stage, for the progress bar. */
export interface Step {
  readonly name: string;
  /** Share of a layer's time, in any unit that the other steps share. */
  readonly weight: number;
}

export interface CalibratedLayer {
  /** File of the hidden states that the layer reads. */
  readonly input: string;
  /** Tokens of each sequence. */
  readonly lengths: Int32Array;
  /** File of what the layer gives in the dense model, from row `firstDense` on; only where a stage `needsDense`. */
  readonly dense: string;
  readonly firstDense: number;
}

/** Where a stage finds the layer that it works on. */
export interface LayerContext {
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  readonly layer: number;
  readonly pruner: NativePruner;
  /** Undefined without calibration. */
  readonly calibrated: CalibratedLayer | undefined;
  /** Folder of the checkpoint, for messages. */
  readonly source: string;
  readonly signal: AbortSignal | undefined;
  /** What `prepare` returned for this run. */
  readonly prepared: unknown;
  /** Runs the layer over the calibration set and gathers statistics; nothing where the recipe has no calibration set. */
  collect(request: Pick<NativeStatistics, 'gram' | 'pooled' | 'routerWeighted'>, step: number): Promise<void>;
  /** Runs the layer over the calibration set; one survey for each part, none where the recipe has no calibration set. */
  survey(request: Partial<NativeSurveyRequest>, step: number): Promise<NativeSurvey[]>;
  /** `done` of `total` of the stage's step `step`. */
  progress(step: number, done: number, total: number): void;
}

/** What a stage can use to decide something for the whole model before the first layer is changed. */
export interface PrepareContext {
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  readonly seed: number;
  readonly threads: number;
  readonly signal: AbortSignal | undefined;
  warn(message: string): void;
  /** The dense model over the calibration set, layer by layer. */
  readonly walk: DenseWalk;
}

/** A kind of stage. `Given` is what a recipe says, `Stage` the same with its defaults. */
export interface StageKind<Given, Stage extends StageBase> {
  readonly name: Stage['stage'];
  readonly schema: z.ZodType<Given>;
  /** Fills in the defaults. @throws USAGE with the option as `field` */
  resolve(given: Given): Stage;
  /** @throws USAGE where it undoes what stages before it do */
  follow?(before: readonly StageBase[]): void;
  /** Whether it looks at calibration data. */
  needsCalibration(stage: Stage): boolean;
  /** Whether `run` looks at calibration data, and not `prepare` alone. @default as needsCalibration says */
  readsLayers?(stage: Stage): boolean;
  /** Whether its result depends on the recipe's seed other than through the calibration set. @default false */
  dependsOnSeed?(stage: Stage): boolean;
  /** Whether its result depends on the instruction set (by the last bits of sums). */
  dependsOnIsa(stage: Stage): boolean;
  /** @throws USAGE where it does not fit the model */
  check(stage: Stage, spec: ModelSpec): void;
  /** Zeros that it leaves in a matrix, for the forecast of a dry run. */
  zeros(stage: Stage, rows: number, cols: number): number;
  /** Experts that it leaves of so many in a layer, for the same forecast; on average, where layers may differ. @default all */
  keeps?(stage: Stage, experts: number): number;
  steps(stage: Stage): readonly Step[];
  /** Whether it compares with the hidden states of the dense model. @default false */
  readonly needsDense?: boolean;
  /** Files of the size of the calibration set's hidden states that it needs on the output's disk while it runs. @default 0 */
  hiddenFiles?(stage: Stage): number;
  memory(stage: Stage, shape: StageShape): StageMemory;
  /** Runs once before the first layer; the result is kept with the unfinished run, as JSON. */
  prepare?(stage: Stage, context: PrepareContext): Promise<unknown>;
  run(stage: Stage, context: LayerContext): Promise<StageOutcome>;
  /** The experts that each layer has afterwards; only of a stage that changes their number or how they are reached. */
  leaves?(stage: Stage, prepared: unknown): readonly LayerExperts[];
  /** A few words for people. */
  describe(stage: Stage): string;
}
