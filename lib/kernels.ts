/**
 * `espalier/kernels`: the parts of the engine and the pruner one by one, for measurements and pipelines. Every function
 * here works synchronously, on the calling thread and the native thread pool.
 */
import { EspalierError } from './errors.ts';
import { callNative, type NativeFormat, type NativeMatrix, type NativeMatrixInfo, native } from './native.ts';
import { checkSparsity, nativeBudget, parsePattern } from './prune/budget.ts';
import { type ActivationType, activationTypes, checkChoice } from './runtime/arithmetic.ts';

/** Which elements are stored: `auto` by the zeros, or by name; `N:M` needs an even M that divides the columns. */
export type MatrixFormat = 'auto' | 'dense' | 'bitmap' | `${number}:${number}`;

export interface PackOptions {
  /** @default 'auto' */
  format?: MatrixFormat | undefined;
  /** What stored elements become; int8 and int4 have a scale for each row and 64 inputs. @default 'bf16' */
  values?: 'bf16' | 'f32' | 'int8' | 'int4' | undefined;
  /** 0: one for each core. @default 0 */
  threads?: number | undefined;
}

export interface RandomMatrixOptions extends PackOptions {
  /** @default 'dense' */
  format?: Exclude<MatrixFormat, 'auto'> | undefined;
  /** Chance of each weight to be zero, for `bitmap`. @default 0.5 */
  sparsity?: number | undefined;
  /** An integer; its lowest 32 bits count. @default 0 */
  seed?: number | undefined;
}

export interface MultiplyOptions {
  /** How bf16 weights see `x`. @default 'float32' */
  activations?: ActivationType | undefined;
}

/** A weight matrix `[rows, cols]` packed as the engine runs it. */
export class SparseMatrix implements Disposable {
  readonly rows: number;
  readonly cols: number;
  /** Bytes that a product reads. */
  readonly bytes: number;
  /** For example `bitmap bf16`. */
  readonly format: string;
  readonly #matrix: NativeMatrix;

  private constructor(matrix: NativeMatrix, info: NativeMatrixInfo) {
    this.#matrix = matrix;
    this.rows = info.rows;
    this.cols = info.cols;
    this.bytes = info.bytes;
    this.format = info.format;
  }

  /**
   * Packs row-major float32 `values` `[rows, cols]`; `cols` must be even. Throws `USAGE` for sizes that do not fit, and for
   * an N:M format that the zeros do not satisfy.
   */
  static pack(values: Float32Array, rows: number, cols: number, options: PackOptions = {}): SparseMatrix {
    const { format = 'auto', threads = 0 } = options;
    const packing = nativeFormat(format, options.values ?? 'bf16');
    return SparseMatrix.#of(() => native().matrixPack(values, rows, cols, packing, threads));
  }

  /**
   * Normally distributed weights for measurements, made and packed natively: all non-zero for `dense`, zeros by chance for
   * `bitmap`, N random ones of each M for `N:M`. 64 different rows repeat, so that gigabytes are packed in seconds.
   * Throws `USAGE` as `pack` does.
   */
  static random(rows: number, cols: number, options: RandomMatrixOptions = {}): SparseMatrix {
    const { format = 'dense', values = 'bf16', sparsity = 0.5, seed = 0, threads = 0 } = options;
    const packing = nativeFormat(format, values);
    checkSparsity(sparsity);
    return SparseMatrix.#of(() => native().matrixRandom(rows, cols, packing, sparsity, seed >>> 0, threads));
  }

  static #of(make: () => NativeMatrix): SparseMatrix {
    const matrix = callNative(make);
    return new SparseMatrix(
      matrix,
      callNative(() => native().matrixInfo(matrix)),
    );
  }

  /**
   * y = x Wᵀ: `x` is `[tokens, cols]`, the result `[tokens, rows]`, float32 accumulation. Pass `out` to reuse its memory.
   */
  multiply(
    x: Float32Array,
    out = new Float32Array((x.length / this.cols) * this.rows),
    options: MultiplyOptions = {},
  ): Float32Array {
    const { activations = 'float32' } = options;
    checkChoice('activations', activations, activationTypes);
    callNative(() => native().matrixMultiply(this.#matrix, x, x.length / this.cols, out, activations));
    return out;
  }

  /** Row-major float32 `[rows, cols]`, exactly what is stored. */
  unpack(): Float32Array {
    return callNative(() => native().matrixUnpack(this.#matrix));
  }

  dispose(): void {
    native().matrixDispose(this.#matrix);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * What becomes of a format of matrices with `cols` inputs on this processor: `taken`, there is a product for it;
 * `expanded`, models run such matrices dense, which is faster here; `impossible`, the format does not exist for so many
 * inputs.
 */
export function formatSupport(
  cols: number,
  options: { format: Exclude<MatrixFormat, 'auto'>; values?: PackOptions['values'] },
): 'taken' | 'expanded' | 'impossible' {
  const { format, values = 'bf16' } = options;
  const packing = nativeFormat(format, values);
  return callNative(() => native().formatSupport(packing, cols));
}

export interface ReadCeilingOptions {
  /** Size of the buffer that is read: as many bytes as the weights have whose product is judged by the result. */
  bytes: number;
  /** 0: one for each core. @default 0 */
  threads?: number | undefined;
  /**
   * Loads alone, without the prefetches that products have too: what a program reaches that leaves memory to the
   * processor. @default false
   */
  plain?: boolean | undefined;
}

/**
 * Bytes a second at which all threads read a buffer from end to end: what a product cannot exceed whose weights come from
 * where that buffer lies, which is memory if it is larger than every cache. The median of at least 15 passes; blocks for
 * as long as they take. Throws `USAGE` unless `bytes` is a positive integer, `OUT_OF_MEMORY`.
 *
 * @example matrix.bytes / seconds / readCeiling({ bytes: matrix.bytes }) // fraction of what is possible
 */
export function readCeiling({ bytes, threads = 0, plain = false }: ReadCeilingOptions): number {
  if (!Number.isSafeInteger(bytes) || bytes < 1) {
    throw new EspalierError('USAGE', `bytes must be a positive integer; found ${bytes}`, { field: 'bytes' });
  }
  return callNative(() => native().readCeiling(bytes, threads, plain));
}

/**
 * bf16 operations a second of the processor's matrix units on numbers that stay in their registers, a multiplication and
 * an addition being two; 0 where there are none. What large batches with bf16 activations can be held against.
 */
export function matrixUnitPeak({ threads = 0 }: { threads?: number | undefined } = {}): number {
  return callNative(() => native().tilePeak(threads));
}

/** Names and defaults are those of transformers' configurations (`num_experts_per_tok` is `topK`). */
export interface RouteOptions {
  /** Experts a token goes to. */
  topK: number;
  /** Divide the chosen scores by their sum + 1e-20 (`norm_topk_prob`). @default false */
  renormalise?: boolean | undefined;
  /** A softmax over a token's logits, or a sigmoid of each (DeepSeek-V3, GLM-4.5). @default 'softmax' */
  scoringFunc?: 'softmax' | 'sigmoid' | undefined;
  /**
   * A value for each expert, added to its score for the choice but not in the gate (`e_score_correction_bias`; DeepSeek-V3,
   * arXiv 2412.19437, Eq. 16). @default none
   */
  correctionBias?: Float32Array | undefined;
  /** Groups of equal size that the experts lie in, one after the other. @default 1 */
  nGroup?: number | undefined;
  /** Choose only from so many groups, those with the largest sums of their two best scores with bias. @default 1 */
  topkGroup?: number | undefined;
  /** Multiplies the gates, last. @default 1 */
  routedScalingFactor?: number | undefined;
}

/**
 * Scores each token's router logits `[tokens, experts]` in float32, then takes the top k, highest first, ties to the lower
 * index. A logit of −∞ scores 0; a score of NaN is chosen last. Throws `USAGE` for options that do not fit the experts.
 * @returns expert ids and gates, both `[tokens, topK]`
 */
export function route(
  logits: Float32Array,
  experts: number,
  options: RouteOptions,
): { experts: Int32Array; gates: Float32Array } {
  const { renormalise = false } = options;
  return callNative(() => native().route(logits, logits.length / experts, experts, { ...options, renormalise }));
}

/**
 * Scores `[rows, cols]`: |W|, or with the norms of the input columns |W_ij| · ‖X_j‖₂ (Wanda, arXiv 2306.11695, Eq. 1; with
 * norms of gate-weighted inputs MoE-Pruner, arXiv 2410.12013, Eq. 9).
 */
export function scoreWeights(
  weights: Float32Array,
  rows: number,
  cols: number,
  options: { norms?: Float32Array | undefined } = {},
): Float32Array {
  return callNative(() => native().scoreWeights(weights, rows, cols, options.norms));
}

export interface MaskOptions {
  /** Fraction to zero, between 0 and 1. */
  sparsity?: number | undefined;
  /** `N:M`: keep N of each M consecutive inputs. Excludes `sparsity`. */
  pattern?: string | undefined;
  /** What an unstructured choice compares: an equal share of every row, or one threshold. @default 'row' */
  comparison?: 'row' | 'matrix' | undefined;
}

/** Which weights stay, by their scores `[rows, cols]`: 1 kept, 0 zeroed; of equal scores the lower column goes first. */
export function selectMask(scores: Float32Array, rows: number, cols: number, options: MaskOptions): Uint8Array {
  const { sparsity, pattern, comparison = 'row' } = options;
  const budget = pattern === undefined ? checkSparsity(sparsity ?? Number.NaN) : parsePattern(pattern);
  return callNative(() => native().selectMask(scores, rows, cols, comparison, nativeBudget(budget)));
}

function nativeFormat(format: MatrixFormat, values: NativeFormat['values']): NativeFormat {
  if (format === 'auto' || format === 'dense' || format === 'bitmap') return { storage: format, values, n: 0, m: 0 };
  const { keep, group } = nativeBudget(parsePattern(format));
  return { storage: 'n:m', values, n: keep, m: group };
}
