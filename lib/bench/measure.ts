import { Bench } from 'tinybench';
import { native } from '../native.ts';
import type { DeviceName } from '../runtime/device.ts';
import { describeGpu } from './gpu.ts';

/** What a figure was measured on. */
export interface Machine {
  readonly device: DeviceName;
  /** The CPU, or the GPU, of several the first. */
  readonly processor: string;
  /** Instruction set of the kernels, on a GPU its compute capability. */
  readonly isa: string;
  /** Of the CPU; beside a GPU they only prepare what it is given. */
  readonly threads: number;
}

export interface Timing {
  /** Median. */
  readonly seconds: number;
  readonly samples: number;
}

/** At least so many samples, and for at least so long. */
const minSamples = 9;
const minMilliseconds = 500;

/** Times calls that take milliseconds, one after the other on this thread, after one that does not count. */
export function measure(run: () => void): Timing {
  const bench = new Bench({
    iterations: minSamples,
    time: minMilliseconds,
    warmupIterations: 1,
    warmupTime: 0,
    throws: true,
  });
  bench.add('run', run, { async: false });
  const result = bench.runSync()[0]?.result;
  if (result?.state !== 'completed') throw new Error(`a measurement ended as ${result?.state}`);
  return { seconds: result.latency.p50 / 1000, samples: result.latency.samplesCount };
}

/** This machine with so many threads, 0: one for each core, and where there is one the GPU. */
export function describeMachine(threads: number, device: DeviceName, gpu: number | undefined): Machine {
  const { model, isa, threads: cores } = native().features();
  return {
    device,
    processor: model,
    isa,
    ...(gpu !== undefined && describeGpu(gpu)),
    threads: threads === 0 ? cores : threads,
  };
}

/** The beginning of a table's first line. */
export function machineText({ device, processor, isa, threads }: Machine): string {
  return `${processor}, ${isa}${device === 'cpu' ? `, ${threads} threads` : ''}`;
}
