/** Products of packed formats against what the machine can read, which is measured beside them. */
import { freemem } from 'node:os';
import { setImmediate } from 'node:timers/promises';
import { throwIfAborted } from '../abort.ts';
import { EspalierError } from '../errors.ts';
import { formatSupport, matrixUnitPeak, readCeiling, SparseMatrix } from '../kernels.ts';
import { formatBytes } from '../report/format.ts';
import type { ActivationType } from '../runtime/arithmetic.ts';
import { type DeviceName, gpuOf } from '../runtime/device.ts';
import { type GpuWork, gpuFormats, gpuSize, measureGpuProducts, whyNotOnGpu } from './gpu.ts';
import { type BenchFormat, defaultFormats, formatName, type MatrixSize } from './lists.ts';
import { describeMachine, type Machine, measure, type Timing } from './measure.ts';

export interface KernelBenchOptions {
  /** Where products run: the CPU or one GPU, `cuda` or `cuda:1`. @default 'cpu' */
  device?: DeviceName | undefined;
  /**
   * Sizes of matrices. @default one of 4096 columns with as many rows as make `gigabytes`; on a GPU 14336 × 4096
   */
  sizes?: readonly MatrixSize[] | undefined;
  /**
   * @default dense, bitmap and 2:4, each as bf16, int8 and int4, and 32:64 int4, less what this processor expands to dense;
   * on a GPU dense, 2:4, 16:32 and bitmap bf16, dense and 2:4 int8
   */
  formats?: readonly BenchFormat[] | undefined;
  /** Tokens multiplied at once. @default [1] */
  batch?: readonly number[] | undefined;
  /**
   * Weights that a measurement goes through, in GB of dense bf16: so many matrices of a size, each with its own memory,
   * take turns, at least one and at most 4096. Below the size of the caches it measures the caches. @default 1.5
   */
  gigabytes?: number | undefined;
  /** How bf16 weights see their inputs. @default 'float32' */
  activations?: ActivationType | undefined;
  /** Fraction of zeros in `bitmap`, between 0 and 1. @default 0.5 */
  sparsity?: number | undefined;
  /** 0: one for each core. @default 0 */
  threads?: number | undefined;
  /** @default 0 */
  seed?: number | undefined;
  /** Noticed between two measurements. */
  signal?: AbortSignal | undefined;
  onProgress?: ((fraction: number, doing: string) => void) | undefined;
}

/** A format at a size and a batch. */
export interface KernelBenchRow {
  /** For example `bitmap int4`. */
  readonly format: string;
  readonly rows: number;
  readonly cols: number;
  /** How many of them took turns. */
  readonly matrices: number;
  readonly batch: number;
  /** Of one matrix as packed, which a product reads once. */
  readonly bytes: number;
  readonly bitsPerWeight: number;
  /** Median of one product; on a GPU of a CUDA graph of all matrices' products, by their number. */
  readonly microseconds: number;
  readonly samples: number;
  /** `bytes` by time; GB are 10⁹ bytes throughout. */
  readonly gigabytesPerSecond: number;
  /**
   * The best read known here, with prefetches as products have them, of a buffer as large as all matrices of the row
   * together, the better of before and after the products. On a GPU a plain read of the matrices themselves.
   */
  readonly ceilingGigabytesPerSecond: number;
  readonly fractionOfCeiling: number;
  /** Likewise a plain read, without prefetches, which is slower on the CPU; on a GPU the same read. */
  readonly plainReadGigabytesPerSecond: number;
  readonly fractionOfPlainRead: number;
  /** How many times as fast as the dense format of the same values; null where that was not measured. */
  readonly timesDense: number | null;
  /** How many times as fast as the dense bf16 weights could be read at the ceiling. */
  readonly timesIdealDenseBf16: number;
  /** Likewise at the plain read's rate. */
  readonly timesPlainDenseBf16: number;
  /** 2 · rows · cols · batch by time: zeros count as the dense product would have multiplied them. */
  readonly denseGigaflopsPerSecond: number;
  /**
   * Of the bf16 peak of the matrix units; null for other values, with float32 activations, where there are none and on a
   * GPU.
   */
  readonly fractionOfMatrixUnitPeak: number | null;
}

export interface KernelBenchReport extends Machine {
  readonly gigabytes: number;
  readonly sparsity: number;
  readonly activations: ActivationType;
  /** Measured in this run; null where there are none, and on a GPU. */
  readonly matrixUnitGigaflopsPerSecond: number | null;
  readonly rows: readonly KernelBenchRow[];
  /** Formats of the default list that were left out. */
  readonly skipped: readonly { readonly format: string; readonly cols: number; readonly reason: string }[];
}

const defaultCols = 4096;
const tileRows = 16;
const maxMatrices = 4096;
/** With scales. */
const denseBits = { bf16: 16, f32: 32, int8: 8.25, int4: 4.25 };

/** Measures every format at every size and batch. Throws `USAGE`, `OUT_OF_MEMORY`, `DEVICE`, `ABORTED`. */
export async function benchKernels(options: KernelBenchOptions = {}): Promise<KernelBenchReport> {
  const { device = 'cpu', batch = [1], gigabytes = 1.5, sparsity = 0.5, threads = 0 } = options;
  const { activations = 'float32', seed = 0, signal, onProgress } = options;
  const gpu = gpuOf(device);
  const formats = options.formats ?? (gpu === undefined ? defaultFormats : gpuFormats);
  if (!(gigabytes > 0 && gigabytes <= 1e6)) {
    throw new EspalierError('USAGE', `gigabytes must lie above 0 and be at most 1000000; found ${gigabytes}`, {
      field: 'gigabytes',
    });
  }
  const sizes = options.sizes ?? [gpu === undefined ? defaultSize(gigabytes) : gpuSize];
  const skipped: KernelBenchReport['skipped'][number][] = [];
  const work: { size: MatrixSize; format: BenchFormat; matrices: number }[] = [];
  for (const size of sizes) {
    const matrices = Math.max(1, Math.min(maxMatrices, Math.round((gigabytes * 1e9) / (size.rows * size.cols * 2))));
    for (const format of formats) {
      const reason = gpu === undefined ? whyNot(format, size) : whyNotOnGpu(format, size);
      if (reason === undefined) work.push({ size, format, matrices });
      else if (options.formats === undefined) skipped.push({ format: formatName(format), cols: size.cols, reason });
      else throw unsupported(format, size, reason, gpu);
    }
  }
  if (gpu === undefined) for (const { size, format, matrices } of work) checkMemory(size, format, matrices);
  const peak = gpu === undefined ? matrixUnitPeak({ threads }) : 0;

  const rows: KernelBenchRow[] = [];
  for (const [i, { size, format, matrices }] of work.entries()) {
    onProgress?.(i / work.length, `${formatName(format)}, ${size.rows} × ${size.cols}`);
    // Lets signals through and the progress bar be drawn: what follows holds this thread.
    await setImmediate();
    throwIfAborted(signal);
    const settings = { batch, sparsity, activations, threads, seed };
    const measured =
      gpu === undefined
        ? measureOnCpu(size, format, matrices, settings)
        : await measureOnGpu(gpu, { size, format, matrices, ...settings }, signal);
    rows.push(...toRows(size, format, matrices, measured, { batch, activations, peak }));
  }
  return {
    ...describeMachine(threads, device, gpu),
    gigabytes,
    sparsity,
    activations,
    matrixUnitGigaflopsPerSecond: peak === 0 ? null : peak / 1e9,
    rows: rows.map((row) => ({ ...row, timesDense: timesDense(row, rows) })),
    skipped,
  };
}

interface Settings {
  readonly batch: readonly number[];
  readonly sparsity: number;
  readonly activations: ActivationType;
  readonly threads: number;
  readonly seed: number;
}

interface Measured {
  /** Of one matrix. */
  readonly bytes: number;
  /** Of all matrices, for each batch. */
  readonly timings: readonly Timing[];
  /** Bytes a second of reads. */
  readonly ceiling: number;
  readonly plain: number;
}

async function measureOnGpu(gpu: number, work: GpuWork, signal: AbortSignal | undefined): Promise<Measured> {
  const { bytes, timings, ceiling } = await measureGpuProducts(gpu, work, signal);
  return { bytes, timings, ceiling, plain: ceiling };
}

function measureOnCpu(size: MatrixSize, format: BenchFormat, count: number, settings: Settings): Measured {
  const { rows, cols } = size;
  const { batch, sparsity, activations, threads, seed } = settings;
  const matrices: SparseMatrix[] = [];
  try {
    for (let i = 0; i < count; i++) {
      matrices.push(SparseMatrix.random(rows, cols, { ...format, sparsity, seed, threads }));
    }
    const { bytes } = matrices[0]!;
    const read = (plain: boolean) => readCeiling({ bytes: bytes * count, threads, plain });
    const before = { best: read(false), plain: read(true) };
    const timings = batch.map((tokens) => {
      const x = Float32Array.from({ length: tokens * cols }, (_, i) => Math.sin(i));
      const y = new Float32Array(tokens * rows);
      return measure(() => {
        for (const matrix of matrices) matrix.multiply(x, y, { activations });
      });
    });
    const ceiling = Math.max(before.best, read(false));
    const plain = Math.max(before.plain, read(true));
    return { bytes, timings, ceiling, plain };
  } finally {
    for (const matrix of matrices) matrix.dispose();
  }
}

function toRows(
  { rows, cols }: MatrixSize,
  format: BenchFormat,
  matrices: number,
  { bytes, timings, ceiling, plain }: Measured,
  { batch, activations, peak }: Pick<Settings, 'batch' | 'activations'> & { readonly peak: number },
): KernelBenchRow[] {
  const onMatrixUnits = peak > 0 && activations === 'bf16' && format.values === 'bf16';
  return timings.map(({ seconds: all, samples }, i) => {
    const seconds = all / matrices;
    const flops = (2 * rows * cols * batch[i]!) / seconds;
    return {
      format: formatName(format),
      rows,
      cols,
      matrices,
      batch: batch[i]!,
      bytes,
      bitsPerWeight: (bytes * 8) / (rows * cols),
      microseconds: seconds * 1e6,
      samples,
      gigabytesPerSecond: bytes / seconds / 1e9,
      ceilingGigabytesPerSecond: ceiling / 1e9,
      fractionOfCeiling: bytes / seconds / ceiling,
      plainReadGigabytesPerSecond: plain / 1e9,
      fractionOfPlainRead: bytes / seconds / plain,
      timesDense: null,
      timesIdealDenseBf16: (rows * cols * 2) / ceiling / seconds,
      timesPlainDenseBf16: (rows * cols * 2) / plain / seconds,
      denseGigaflopsPerSecond: flops / 1e9,
      fractionOfMatrixUnitPeak: onMatrixUnits ? flops / peak : null,
    };
  });
}

function timesDense(row: KernelBenchRow, rows: readonly KernelBenchRow[]): number | null {
  const dense = rows.find(
    (other) =>
      other.format === row.format.replace(/^\S+/, 'dense') &&
      other.rows === row.rows &&
      other.cols === row.cols &&
      other.batch === row.batch,
  );
  return dense === undefined ? null : dense.microseconds / row.microseconds;
}

function defaultSize(gigabytes: number): MatrixSize {
  const rows = Math.floor((gigabytes * 1e9) / 2 / defaultCols / tileRows) * tileRows;
  return { rows: Math.max(tileRows, rows), cols: defaultCols };
}

function whyNot(format: BenchFormat, { cols }: MatrixSize): string | undefined {
  const support = formatSupport(cols, format);
  if (support === 'taken') return undefined;
  return support === 'expanded' ? 'this processor multiplies it faster as dense' : `does not exist for ${cols} columns`;
}

function unsupported(format: BenchFormat, size: MatrixSize, reason: string, gpu: number | undefined): EspalierError {
  if (gpu !== undefined) {
    return new EspalierError('USAGE', `${formatName(format)} cannot be measured: ${reason}`, { field: 'formats' });
  }
  const allowed = defaultFormats.filter((other) => whyNot(other, size) === undefined).map(formatName);
  return new EspalierError(
    'USAGE',
    `${formatName(format)} cannot be measured: ${reason}; allowed here for ${size.cols} columns: ${allowed.join(', ')}` +
      ' and the other N:M that exist',
    { field: 'formats' },
  );
}

/** Linux grants more memory than there is and ends the process that uses it. */
function checkMemory({ rows, cols }: MatrixSize, format: BenchFormat, matrices: number): void {
  // The weights, and a buffer of as many bytes to read.
  const needed = (2 * matrices * rows * cols * denseBits[format.values]) / 8;
  const available = process.availableMemory?.() ?? freemem();
  if (needed <= available) return;
  throw new EspalierError(
    'OUT_OF_MEMORY',
    `${matrices} × ${formatName(format)} of ${rows} × ${cols} and a buffer to read of the same size take up to ` +
      `${formatBytes(needed)}, ${formatBytes(available)} are available; measure fewer gigabytes or smaller sizes`,
  );
}
