/**
 * `espalier/kernels`: the parts of the engine and the pruner one by one, for measurements and pipelines. Every function
 * here works synchronously, on the calling thread and the native thread pool.
 */
import { callNative, type NativeFormat, type NativeMatrix, type NativeMatrixInfo, native } from './native.ts';
import { checkSparsity, nativeBudget, parsePattern } from './prune/budget.ts';

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

/** A weight matrix `[rows, cols]` packed as the engine runs it. */
export class SparseMatrix implements Disposable {
  readonly rows: number;
  readonly cols: number;
  /** Bytes that a product reads. */
  readonly bytes: number;
  /** For example `bitmap bf16`. */
  readonly format: string;
  readonly #matrix: NativeMatrix;
  readonly #threads: number;

  private constructor(matrix: NativeMatrix, info: NativeMatrixInfo, threads: number) {
    this.#matrix = matrix;
    this.#threads = threads;
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
    const matrix = callNative(() => native().matrixPack(values, rows, cols, packing, threads));
    return new SparseMatrix(
      matrix,
      callNative(() => native().matrixInfo(matrix)),
      threads,
    );
  }

  /**
   * y = x Wᵀ: `x` is `[tokens, cols]`, the result `[tokens, rows]`, float32 accumulation. Pass `out` to reuse its memory.
   */
  multiply(x: Float32Array, out = new Float32Array((x.length / this.cols) * this.rows)): Float32Array {
    callNative(() => native().matrixMultiply(this.#matrix, x, x.length / this.cols, out, this.#threads));
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

export interface RouteOptions {
  /** Experts a token goes to. */
  topK: number;
  /** Divide the chosen probabilities by their sum. @default false */
  renormalise?: boolean | undefined;
}

/**
 * Softmax over each token's router logits `[tokens, experts]`, then the top k, highest first, ties to the lower index.
 * @returns expert ids and gates, both `[tokens, topK]`
 */
export function route(
  logits: Float32Array,
  experts: number,
  options: RouteOptions,
): { experts: Int32Array; gates: Float32Array } {
  const { topK, renormalise = false } = options;
  return callNative(() => native().route(logits, logits.length / experts, experts, topK, renormalise));
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
