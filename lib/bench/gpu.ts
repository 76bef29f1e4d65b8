/** Measurements on a GPU. */
import { type NativeFormat, native, runJob } from '../native.ts';
import type { ActivationType } from '../runtime/arithmetic.ts';
import type { BenchFormat, MatrixSize } from './lists.ts';
import type { Machine, Timing } from './measure.ts';

/** What is measured on a GPU unless formats are given. */
export const gpuFormats: readonly BenchFormat[] = [
  ...(['dense', '2:4', '16:32', 'bitmap'] as const).map((format) => ({ format, values: 'bf16' }) as const),
  ...(['dense', '2:4'] as const).map((format) => ({ format, values: 'int8' }) as const),
];

/** Of a layer of Mixtral-8x7B. */
export const gpuSize: MatrixSize = { rows: 14336, cols: 4096 };

/** What the kernels' tiles are padded to. */
const colsUnit = 32;
/** More than every cache holds. */
const ceilingBytes = 1.5e9;

/** Why the GPU has no product for a format; undefined where it has one. */
export function whyNotOnGpu({ format, values }: BenchFormat, { cols }: MatrixSize): string | undefined {
  const isOfBoth = format === 'dense' || format === '2:4';
  const isTaken =
    values === 'bf16' ? isOfBoth || format === 'bitmap' || format.endsWith(':32') : values === 'int8' && isOfBoth;
  if (!isTaken) return 'the GPU multiplies dense, bitmap, 2:4 and N:32 as bf16, dense and 2:4 as int8';
  return cols % colsUnit === 0 ? undefined : `the GPU takes multiples of ${colsUnit} columns, not ${cols}`;
}

export interface GpuWork {
  readonly size: MatrixSize;
  readonly format: BenchFormat;
  readonly matrices: number;
  readonly batch: readonly number[];
  readonly sparsity: number;
  readonly activations: ActivationType;
  readonly threads: number;
  readonly seed: number;
}

export interface GpuProducts {
  /** Of one matrix as packed. */
  readonly bytes: number;
  /** Bytes a second of a plain read of all matrices, the better of before and after. */
  readonly ceiling: number;
  /** Of all matrices, for each batch. */
  readonly timings: readonly Timing[];
}

/**
 * Products by matrices in the GPU's memory, all of them started as one CUDA graph. Throws `DEVICE`, `OUT_OF_MEMORY`,
 * `ABORTED`.
 */
export async function measureGpuProducts(gpu: number, work: GpuWork, signal?: AbortSignal): Promise<GpuProducts> {
  const { size, format, matrices, batch, sparsity, activations, threads, seed } = work;
  const { bytes, ceiling, seconds, samples } = await runJob(
    () =>
      native().cudaMeasureProducts(gpu, {
        format: nativeFormat(format),
        ...size,
        sparsity,
        seed: seed >>> 0,
        matrices,
        batches: Int32Array.from(batch),
        activations,
        threads,
      }),
    signal,
  );
  const timings = batch.map((_, i) => ({ seconds: seconds[i]! * matrices, samples: samples[i]! }));
  return { bytes, ceiling, timings };
}

/** Bytes a second of a plain read of the GPU's memory. Throws `DEVICE`, `OUT_OF_MEMORY`, `ABORTED`. */
export async function gpuReadCeiling(gpu: number, signal?: AbortSignal): Promise<number> {
  return runJob(() => native().cudaReadCeiling(gpu, ceilingBytes), signal);
}

/** The GPU of that number, which there must be. */
export function describeGpu(gpu: number): Pick<Machine, 'processor' | 'isa'> {
  const device = native()
    .cudaDevices()
    .devices.find(({ number }) => number === gpu);
  return { processor: device?.name ?? '', isa: `compute capability ${device?.capability}` };
}

function nativeFormat({ format, values }: BenchFormat): NativeFormat {
  if (format === 'dense' || format === 'bitmap') return { storage: format, values, n: 0, m: 0 };
  const [n, m] = format.split(':').map(Number) as [number, number];
  return { storage: 'n:m', values, n, m };
}
