/** What goes to and from the addon's layer pruner. */
import type { NativeWeight } from './native.ts';

declare const prunerBrand: unique symbol;
export type NativePruner = { readonly [prunerBrand]: true };

export interface NativePrunerOptions {
  /** The GPU that the layer runs on; undefined: the CPU. */
  readonly gpu: number | undefined;
  readonly threads: number;
  readonly rope: { readonly inverseFrequencies: Float32Array; readonly scale: number };
  readonly hiddenSize: number;
  readonly normEpsilon: number;
  readonly allowNonfinite: boolean;
}

export interface NativeForward {
  /** File of float32 `[tokens, hidden]`. */
  readonly input: string;
  readonly output?: string;
  /** Rows of the files where the sequences begin; what else `output` holds is left. @default 0 */
  readonly firstInput?: number;
  readonly firstOutput?: number;
  /** Tokens of each sequence. */
  readonly lengths: Int32Array;
  /** Statistics to gather. */
  readonly collect?: NativeStatistics;
}

/** See native/prune/layer_statistics.h. */
export interface NativeStatistics {
  /** Gram matrices beside the lengths of columns. */
  readonly gram: boolean;
  /** With gram: also that of what all experts read. */
  readonly pooled: boolean;
  /** Each token's input is weighted by its gate. */
  readonly routerWeighted: boolean;
  /** Experts whose Gram matrices are in memory at once; the others' are made one at a time from a file at `scratch`. */
  readonly together: number;
  readonly scratch: string;
}

export interface NativeSurveyRequest {
  readonly input: string;
  readonly output?: string;
  readonly lengths: Int32Array;
  /** Σ l_i · l_j of the router's logits. */
  readonly logitProducts: boolean;
  /** The mean output of every expert over all tokens. */
  readonly meanOutputs: boolean;
  /** Losses of all sets of so many experts; 0 for none. */
  readonly keep: number;
}

/** What the calibration set shows of the experts of a part (native/prune/survey_sums.h); all empty for a dense one. */
export interface NativeSurvey {
  readonly tokens: number;
  readonly topK: number;
  readonly experts: number;
  /** `[experts, 3, 3]`: Σ gate^α · ‖output‖^β over the tokens of an expert. */
  readonly family: Float64Array;
  /** `[experts, experts]`: tokens that chose both. */
  readonly coactivation: Float64Array;
  /** `[experts]`: Σ of the router's score over all tokens. */
  readonly probabilities: Float64Array;
  /** `[experts, experts]`, or empty. */
  readonly logitProducts: Float64Array;
  /** `[experts, hidden]`, or empty. */
  readonly meanOutputs: Float64Array;
  /** Of every kept set in lexicographic order, or empty. */
  readonly losses: Float64Array;
  /** `[topK − 1]`: median over tokens of the gate of the 2nd, 3rd, … expert over that of the first. */
  readonly gateRatios: Float64Array;
}

/** What becomes of the experts and the router of a part; see lib/prune/experts/plan.ts. */
export interface NativeRestructure {
  readonly experts: readonly (readonly { readonly expert: number; readonly weight: number }[])[];
  readonly expertOfRow: readonly number[];
  readonly align: boolean;
  readonly topK: number;
  /** `[rows, hidden]` in the element type of the router. */
  readonly router: Uint8Array;
  readonly correctionBias?: Float32Array;
}

export interface NativePlan {
  readonly score: 'magnitude' | 'activation' | 'relative' | 'second-order';
  /** given: the zeros that are there stay, and no others go. */
  readonly comparison: 'matrix' | 'row' | 'block' | 'given';
  readonly update: 'none' | 'sparsegpt' | 'alps';
  /** What is kept is rounded to the grids of native/prune/value_grid.h; float: not rounded. */
  readonly values: 'float' | 'int8' | 'int4';
  /** Unstructured: the fraction zeroed; n:m where `group` is not 0. */
  readonly sparsity: number;
  readonly keep: number;
  readonly group: number;
  /** What meets an unstructured budget: each matrix, or those of one role of all experts of a layer together. */
  readonly meeting: 'each' | 'experts';
  /** n:m in the order of an expert's inner channels in which it keeps most (native/prune/channel_permutation.h). */
  readonly permuteChannels: boolean;
  readonly damping: number;
  /** Of Gram matrices (native/prune/hessian.h). */
  readonly shrinkage: number;
  readonly block: number;
}

/** An expert matrix of a layer. */
export interface NativeMatrixId {
  readonly part: number;
  readonly expert: number;
  readonly role: 'gate' | 'up' | 'down';
}

export interface NativeMatrixReport extends NativeMatrixId {
  readonly tokens: number;
  readonly fallback: boolean;
  readonly skipped: boolean;
  /** Its Gram matrix is of fewer tokens than it has columns. */
  readonly starved: boolean;
  readonly damping: number;
}

/** See native/prune/recover.h. */
export interface NativeRecovery {
  readonly input: string;
  readonly lengths: Int32Array;
  /** File of the layer's output in the dense model, from row `firstDense` on. */
  readonly dense: string;
  readonly firstDense: number;
  /** Temporary files lie beside it. */
  readonly scratch: string;
  readonly epochs: number;
  readonly batch: number;
  readonly learningRate: number;
  readonly gradual: boolean;
  readonly seed: number;
  /** Of the model, where its last layer is to be compared by next-token distributions. */
  readonly finalNorm?: NativeWeight;
  readonly head?: NativeWeight;
}

export interface NativeExpertRecovery {
  readonly part: number;
  readonly expert: number;
  readonly tokens: number;
  readonly trained: boolean;
  readonly before: number;
  readonly after: number;
  readonly epoch: number;
}

/** What the distribution of weights looks like; see native/prune/moments.h. */
export interface NativeMoments {
  readonly zeros: number;
  readonly size: number;
  readonly kurtosis: number;
  /** Of the weights that are not zero. */
  readonly kurtosisKept: number;
}

export interface NativeMatrixMoments extends NativeMatrixId, NativeMoments {}
