/**
 * How much memory a run takes at its peak. The run goes by it when it decides how many experts' Gram matrices are in memory at
 * once, and a dry run says it.
 */
import { availableParallelism, totalmem } from 'node:os';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { EspalierError } from '../errors.ts';
import type { FeedForwardPart, LayerSpec, ModelSpec, WeightSource } from '../models/spec.ts';
import type { Recipe } from './recipe.ts';
import { kindOf } from './stages/index.ts';
import { allocated, readBytes, type StageShape } from './stages/memory.ts';

export interface LayerMemory {
  /** The layer as it runs. */
  readonly weights: number;
  /** Of the tokens that it runs on together. */
  readonly activations: number;
  /** For each stage of the recipe, what it takes beside them. */
  readonly stages: readonly number[];
  /** For each stage, experts whose statistics are gathered together. */
  readonly together: readonly number[];
  /** The next layer, where it is loaded after the stages, while a GPU runs this one for the last time; else 0. */
  readonly ahead: number;
  /** With the stage that takes most, and with what the process has without any layer. */
  readonly peak: number;
}

export interface MemoryOptions {
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  readonly recipe: Recipe;
  /** Tokens of each calibration sequence. */
  readonly lengths: ArrayLike<number>;
  /** Bytes that the run may take, if that is enough for one expert at a time. */
  readonly limit: number;
  readonly threads: number;
  /** The GPU that layers run on; undefined: the CPU. */
  readonly gpu: number | undefined;
}

/** Node.js, this library, and what was written and waits for the garbage collector. */
const processBytes = 160 * 2 ** 20;

/** Tokens that a layer runs on together (native/prune/layer_pruner.cc), unless a sequence is longer. */
const batchTokens = 4096;

/** Bytes that a run may take. @throws USAGE */
export function memoryLimit({ memoryGiB }: { readonly memoryGiB?: number | undefined }): number {
  if (memoryGiB === undefined) {
    const held = process.constrainedMemory();
    return Math.min(totalmem(), held > 0 ? held : Number.POSITIVE_INFINITY) / 2;
  }
  if (memoryGiB > 0) return memoryGiB * 2 ** 30;
  throw new EspalierError('USAGE', `memoryGiB must be above 0; found ${memoryGiB}`, { field: 'memoryGiB' });
}

export function layerMemory(options: MemoryOptions, layer: number): LayerMemory {
  const { spec, recipe, limit } = options;
  const shape = shapeOf(options, layer);
  const weights = weightBytes(options, layer);
  const activations = activationBytes(spec.layers[layer]!, shape);
  const base = processBytes + weights + activations;
  const [stages, together]: [number[], number[]] = [[], []];
  let { experts } = shape;
  for (const stage of recipe.stages) {
    if (experts === 0) break;
    const kind = kindOf(stage);
    const { each, rest } = kind.memory(stage, { ...shape, experts });
    const room = each === 0 ? experts : Math.max(0, Math.min(experts, Math.floor((limit - base - rest) / each)));
    together.push(room);
    stages.push(rest + each * Math.max(1, room));
    experts = kind.keeps?.(stage, experts) ?? experts;
  }
  const written = readBytes(shape);
  const ahead = aheadBytes(options, layer + 1, limit - base - written);
  return { weights, activations, stages, together, ahead, peak: base + Math.max(written + ahead, ...stages) };
}

/** A layer and the largest of its matrices unpacked, where both have room. */
function aheadBytes(options: MemoryOptions, layer: number, room: number): number {
  if (options.gpu === undefined || layer >= options.spec.layers.length) return 0;
  const sizes = sourcesOf(options.spec.layers[layer]!).map(({ shape }) => elements(shape));
  const bytes = weightBytes(options, layer) + 4 * Math.max(...sizes);
  return bytes <= room ? bytes : 0;
}

function weightBytes({ checkpoint, spec }: MemoryOptions, layer: number): number {
  return sum(
    sourcesOf(spec.layers[layer]!).map(({ tensor, shape }) =>
      allocated(elements(shape) * runningBytes(checkpoint.get(tensor).dtype)),
    ),
  );
}

/** Of the layer that takes most. */
export function mostMemory(options: MemoryOptions): LayerMemory {
  const layers = options.spec.layers.map((_, layer) => layerMemory(options, layer));
  return layers.reduce((most, each) => (each.peak > most.peak ? each : most));
}

function shapeOf({ checkpoint, spec, lengths, threads }: MemoryOptions, layer: number): StageShape {
  const parts = spec.layers[layer]!.feedForward.filter((part) => part.kind === 'routed');
  const gates = parts.flatMap(({ experts }) => experts.map(({ gate }) => gate));
  const dtypes = gates.map(({ tensor }) => checkpoint.get(tensor).dtype);
  const all = Array.from(lengths);
  const tokens = sum(all);
  return {
    hidden: spec.hiddenSize,
    width: Math.max(0, ...gates.map(({ shape }) => shape[0]!)),
    experts: gates.length,
    topK: sum(parts.map(({ router }) => router.topK)),
    storedBytes: Math.max(0, ...dtypes.map((dtype) => (dtype === 'F32' ? 4 : 2))),
    runningBytes: Math.max(0, ...dtypes.map(runningBytes)),
    tokens,
    batch: Math.max(Math.min(tokens, batchTokens), ...all),
    vocabulary: layer + 1 === spec.layers.length ? spec.vocabularySize : 0,
    threads: threads === 0 ? availableParallelism() : threads,
  };
}

/** bf16 runs as it is, the others as float32. */
function runningBytes(dtype: string): number {
  return dtype === 'BF16' ? 2 : 4;
}

function activationBytes({ attention, feedForward }: LayerSpec, { hidden, batch }: StageShape): number {
  const { heads, kvHeads, headDim } = attention;
  const part = (each: FeedForwardPart) => {
    if (each.kind === 'dense') return 2 * hidden + each.mlp.gate.shape[0]!;
    const { topK, expertOfRow } = each.router;
    const width = Math.max(...each.experts.map(({ gate }) => gate.shape[0]!));
    return topK * (2 * hidden + width) + 2 * expertOfRow.length;
  };
  // States of three batches, their norm, what is added to them; queries, keys, values, their mixture, and the cache.
  return batch * 4 * (5 * hidden + 2 * heads * headDim + 4 * kvHeads * headDim + sum(feedForward.map(part)));
}

function sourcesOf({ attention, feedForward }: LayerSpec): WeightSource[] {
  const { q, k, v, o } = attention;
  return [
    ...[q, k, v, o],
    ...feedForward.flatMap((part) => {
      const mlps = part.kind === 'dense' ? [part.mlp] : part.experts;
      return mlps.flatMap(({ gate, up, down }) => [gate, up, down]);
    }),
  ];
}

function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
