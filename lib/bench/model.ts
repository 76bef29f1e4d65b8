/** Prefill and decode of whole models against what the machine can read, which is measured beside them. */
import { throwIfAborted } from '../abort.ts';
import { EspalierError } from '../errors.ts';
import { readCeiling } from '../kernels.ts';
import { median } from '../median.ts';
import { type NativeEngineInfo, native } from '../native.ts';
import type { ActivationType, KvCacheType } from '../runtime/arithmetic.ts';
import { type DeviceName, gpusOf } from '../runtime/device.ts';
import { KV_BLOCK, KvSequence } from '../runtime/kv-blocks.ts';
import { Model } from '../runtime/model.ts';
import { resolveWeights, type Weights } from '../runtime/weights.ts';
import { gpuReadCeiling } from './gpu.ts';
import { describeMachine, type Machine } from './measure.ts';

export interface ModelBenchOptions {
  /** Where models run, as in `Model.load`. @default 'cpu' */
  device?: DeviceName | undefined;
  /** Checkpoints and what their weights are held as. All are in memory together and take turns. */
  models: readonly { readonly path: string; readonly weights?: Weights | undefined }[];
  /** Sequences that decode together, a token each in a step. @default [1] */
  batch?: readonly number[] | undefined;
  /** Random tokens before the first one decoded. @default 512 */
  prompt?: number | undefined;
  /** Decode steps at each batch size. @default 64 */
  tokens?: number | undefined;
  /** What the KV caches hold keys and values as. @default 'float32' */
  kvCache?: KvCacheType | undefined;
  /** How bf16 weights see their inputs. @default 'float32' */
  activations?: ActivationType | undefined;
  /** 0: one for each core. @default 0 */
  threads?: number | undefined;
  /** Of the prompts. @default 0 */
  seed?: number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((fraction: number, doing: string) => void) | undefined;
  onWarning?: ((message: string) => void) | undefined;
}

/** One batch size; GB are 10⁹ bytes throughout. */
export interface DecodeFigures {
  readonly batch: number;
  /** Of all sequences together, from the median step. */
  readonly tokensPerSecond: number;
  readonly millisecondsPerStep: number;
  /** Weights read by a step; null for larger batches, where it depends on how many experts the tokens share. */
  readonly bytesPerStep: number | null;
  readonly gigabytesPerSecond: number | null;
  readonly fractionOfCeiling: number | null;
  /** How many times as many tokens as the first model at this batch size. */
  readonly timesFirst: number;
}

export interface ModelFigures {
  readonly model: string;
  readonly weights: { readonly experts: string; readonly rest: string };
  /** Formats of the routed experts. */
  readonly expertFormats: readonly string[];
  readonly loadSeconds: number;
  readonly weightBytes: number;
  /** Of the KV cache when it is full. */
  readonly kvBytes: number;
  /** Weights that one token reads when it is decoded alone. */
  readonly bytesPerToken: number;
  /** The GPUs that it ran on and what each had of it; none: it ran on the CPU. */
  readonly gpus: NativeEngineInfo['gpus'];
  /**
   * Reading a buffer as large as the weights, at most 1.5 GB, the better of before and after. On a GPU, of several the
   * first, a plain read of 1.5 GB before the models are loaded.
   */
  readonly ceilingGigabytesPerSecond: number;
  /** One sequence, median. */
  readonly prefillTokensPerSecond: number;
  readonly decode: readonly DecodeFigures[];
}

export interface ModelBenchReport extends Machine {
  readonly promptTokens: number;
  readonly decodeSteps: number;
  /** What the KV caches held keys and values as. */
  readonly kvCache: KvCacheType;
  readonly activations: ActivationType;
  readonly models: readonly ModelFigures[];
}

/** Tokens of a step of prefill, as in generation. */
const prefillChunk = 512;
const minPrefills = 3;
/** Turns that each model takes at each batch size. */
const rounds = 4;
const maxCeilingBytes = 1.5e9;

/** Measures each model. Throws `USAGE`, `DEVICE`, `ABORTED` and what `Model.load` throws. */
export async function benchModels(options: ModelBenchOptions): Promise<ModelBenchReport> {
  const {
    device = 'cpu',
    models: given,
    batch = [1],
    prompt = 512,
    tokens = 64,
    threads = 0,
    seed = 0,
    kvCache = 'float32',
    activations = 'float32',
    signal,
  } = options;
  const largest = Math.max(...batch);
  const runs: ModelRun[] = [];
  const total = given.length + Math.max(largest, minPrefills) + rounds * batch.length + 2;
  let done = 0;
  const step = (doing: string) => {
    throwIfAborted(signal);
    options.onProgress?.(done++ / total, doing);
  };
  const gpu = firstGpu(device);
  const gpuCeiling = gpu === undefined ? undefined : await gpuReadCeiling(gpu, signal);
  try {
    for (const { path, weights } of given) {
      step(`loading ${path}`);
      const kvTokens = largest * Math.ceil((prompt + tokens) / KV_BLOCK) * KV_BLOCK;
      const begin = performance.now();
      const model = await Model.load(path, {
        device,
        threads,
        weights,
        kvTokens,
        kvCache,
        activations,
        signal,
        onWarning: options.onWarning,
      });
      const loadSeconds = (performance.now() - begin) / 1000;
      runs.push(new ModelRun(model, { weights, loadSeconds, prompt, tokens, sequences: largest, seed, signal }));
    }
    step('measuring the read ceiling');
    for (const run of runs) run.measureCeiling(threads, gpuCeiling);
    for (let i = 0; i < Math.max(largest, minPrefills); i++) {
      step(`prefill of ${prompt} tokens`);
      for (const run of runs) await run.prefill(i % largest);
    }
    for (let round = 0; round < rounds; round++) {
      const range = [round, round + 1].map((r) => Math.floor((r * tokens) / rounds)) as [number, number];
      for (const size of batch) {
        step(`decode, batch ${size}`);
        for (const run of runs) await run.decode(size, ...range);
      }
    }
    step('measuring the read ceiling');
    for (const run of runs) run.measureCeiling(threads, gpuCeiling);
  } finally {
    for (const { model } of runs) model.dispose();
  }
  const first = runs[0]!;
  return {
    ...describeMachine(threads, device, gpu),
    promptTokens: prompt,
    decodeSteps: tokens,
    kvCache,
    activations,
    models: runs.map((run) => run.figures(batch, first)),
  };
}

interface RunSettings {
  readonly weights: Weights | undefined;
  readonly loadSeconds: number;
  readonly prompt: number;
  readonly tokens: number;
  readonly sequences: number;
  readonly seed: number;
  readonly signal: AbortSignal | undefined;
}

/** A model, its sequences in the cache, and the times it took. */
class ModelRun {
  readonly model: Model;
  readonly #settings: RunSettings;
  readonly #sequences: KvSequence[];
  /** Last token of each sequence. */
  readonly #last: Int32Array;
  readonly #prefillSeconds: number[] = [];
  readonly #stepSeconds = new Map<number, number[]>();
  #ceiling = 0;

  constructor(model: Model, settings: RunSettings) {
    const { prompt, tokens, sequences } = settings;
    this.model = model;
    this.#settings = settings;
    this.#sequences = Array.from({ length: sequences }, () => new KvSequence(model.kv));
    this.#last = new Int32Array(sequences);
    const { maxPositions } = model.spec;
    if (prompt + tokens > maxPositions) {
      model.dispose();
      throw new EspalierError(
        'USAGE',
        `prompt and tokens must fit the context of ${maxPositions} of ${model.path} together; found ${prompt} + ${tokens}`,
        { field: 'prompt' },
      );
    }
  }

  measureCeiling(threads: number, ofGpu: number | undefined): void {
    const bytes = Math.min(this.model.info.weightBytes, maxCeilingBytes);
    this.#ceiling = Math.max(this.#ceiling, ofGpu ?? readCeiling({ bytes, threads }));
  }

  /** Fills the cache of a sequence with its prompt. */
  async prefill(index: number): Promise<void> {
    const { prompt, seed, signal } = this.#settings;
    const ids = randomTokens(prompt, this.model.spec.vocabularySize, seed * 65_537 + index);
    const begin = performance.now();
    for (let position = 0; position < prompt; position += prefillChunk) {
      const tokens = ids.subarray(position, position + prefillChunk);
      const end = position + tokens.length;
      const slices = [{ count: tokens.length, position, blocks: this.#sequences[index]!.table(end) }];
      const samples = end === prompt ? [greedy(tokens.length - 1)] : [];
      const result = await this.model.step({ tokens, slices, samples }, signal);
      if (end === prompt) this.#last[index] = result.samples[0]!;
    }
    this.#prefillSeconds.push((performance.now() - begin) / 1000);
  }

  /** Steps [begin, end) after the prompt with the first `batch` sequences; another batch size writes over them. */
  async decode(batch: number, begin: number, end: number): Promise<void> {
    const { prompt, signal } = this.#settings;
    const seconds = this.#stepSeconds.get(batch) ?? [];
    this.#stepSeconds.set(batch, seconds);
    let tokens: Int32Array = this.#last.slice(0, batch);
    for (let position = prompt + begin; position < prompt + end; position++) {
      const start = performance.now();
      const slices = this.#sequences
        .slice(0, batch)
        .map((sequence) => ({ count: 1, position, blocks: sequence.table(position + 1) }));
      const samples = slices.map((_, row) => greedy(row));
      const result = await this.model.step({ tokens, slices, samples }, signal);
      tokens = result.samples;
      seconds.push((performance.now() - start) / 1000);
    }
    this.#last.set(tokens);
  }

  figures(batch: readonly number[], first: ModelRun): ModelFigures {
    const { weights, loadSeconds, prompt } = this.#settings;
    const { path, info } = this.model;
    return {
      model: path,
      weights: resolveWeights(weights),
      expertFormats: info.formats,
      loadSeconds,
      weightBytes: info.weightBytes,
      kvBytes: info.kvBytes,
      bytesPerToken: info.activeBytes,
      gpus: info.gpus,
      ceilingGigabytesPerSecond: this.#ceiling / 1e9,
      prefillTokensPerSecond: prompt / median(this.#prefillSeconds),
      decode: batch.map((size) => {
        const seconds = this.stepSeconds(size);
        const bytes = size === 1 ? info.activeBytes : null;
        return {
          batch: size,
          tokensPerSecond: size / seconds,
          millisecondsPerStep: seconds * 1000,
          bytesPerStep: bytes,
          gigabytesPerSecond: bytes === null ? null : bytes / seconds / 1e9,
          fractionOfCeiling: bytes === null ? null : bytes / seconds / this.#ceiling,
          timesFirst: first.stepSeconds(size) / seconds,
        };
      }),
    };
  }

  stepSeconds(batch: number): number {
    return median(this.#stepSeconds.get(batch) ?? []);
  }
}

/** The number of the first GPU that a device names. */
function firstGpu(device: DeviceName): number | undefined {
  const gpus = gpusOf(device);
  return gpus === undefined ? undefined : (gpus[0] ?? native().cudaDevices().devices[0]?.number ?? 0);
}

function greedy(row: number) {
  return { row, temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0n, step: 0 };
}

/** Token ids of a 32-bit linear congruential generator (Numerical Recipes, 3rd edition, 7.1). */
function randomTokens(count: number, vocabulary: number, seed: number): Int32Array {
  let state = seed >>> 0;
  return Int32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocabulary);
  });
}
