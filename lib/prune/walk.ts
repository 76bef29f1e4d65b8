/** The dense model over the calibration set, one layer in memory at a time: what decides before anything is pruned. */
import { existsSync, rmSync } from 'node:fs';
import { throwIfAborted } from '../abort.ts';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { ModelSpec } from '../models/spec.ts';
import { type NativePruner, native, runJob } from '../native.ts';
import { nativeLayer, nativeWeight } from '../runtime/native-spec.ts';
import type { Calibration } from './calibrate.ts';

export interface LayerInput {
  readonly layer: number;
  readonly pruner: NativePruner;
  /** File of the hidden states that the layer reads, float32 `[tokens, hidden]`. */
  readonly input: string;
  /** Where the visit may leave those that the next layer reads; otherwise the walk makes them. None after the last layer. */
  readonly output: string | undefined;
  /** Tokens of each calibration sequence. */
  readonly lengths: Int32Array;
}

export interface WalkOptions {
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  readonly calibration: Calibration | undefined;
  readonly gpu: number | undefined;
  readonly threads: number;
  readonly allowNonfinite: boolean;
  /** Where hidden states of a layer may be kept for a while. */
  hiddenPath(layer: number): string;
  readonly signal: AbortSignal | undefined;
}

/** Calls `visit` with each layer, loaded and unchanged. Without a calibration set there are no layers to visit. */
export type DenseWalk = <T>(visit: (layer: LayerInput) => Promise<T>) => Promise<T[]>;

export function denseWalk(options: WalkOptions): DenseWalk {
  const { checkpoint, spec, calibration, gpu, threads, allowNonfinite, hiddenPath, signal } = options;
  return async (visit) => {
    const found: Awaited<ReturnType<typeof visit>>[] = [];
    if (calibration === undefined) return found;
    await writeHidden(checkpoint, spec, calibration, hiddenPath(0), signal);
    const lengths = Int32Array.from(calibration.sequences, ({ length }) => length);
    for (const layer of spec.layers.keys()) {
      throwIfAborted(signal);
      const pruner = await loadLayer({ checkpoint, spec, layer, gpu, threads, allowNonfinite, signal });
      const input = hiddenPath(layer);
      try {
        const output = layer + 1 < spec.layers.length ? hiddenPath(layer + 1) : undefined;
        if (output !== undefined) rmSync(output, { force: true });
        found.push(await visit({ layer, pruner, input, output, lengths }));
        if (output !== undefined && !existsSync(output)) {
          await runJob(() => native().prunerForward(pruner, { input, output, lengths }), signal);
        }
      } finally {
        native().prunerDispose(pruner);
        rmSync(input, { force: true });
      }
    }
    return found;
  };
}

/** Hidden states before the first layer. */
export async function writeHidden(
  checkpoint: Checkpoint,
  spec: ModelSpec,
  { ids }: Calibration,
  path: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const embedding = nativeWeight(checkpoint, spec.embedding);
  await runJob(() => native().writeEmbeddings(embedding, [...checkpoint.files], Int32Array.from(ids), path), signal);
}

export interface LoadLayer {
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  readonly layer: number;
  /** The GPU that it runs on; undefined: the CPU. */
  readonly gpu: number | undefined;
  readonly threads: number;
  readonly allowNonfinite: boolean;
  readonly signal: AbortSignal | undefined;
}

/** A layer as the checkpoint has it; to be given to prunerDispose. */
export async function loadLayer(options: LoadLayer): Promise<NativePruner> {
  const { checkpoint, spec, layer, gpu, threads, allowNonfinite, signal } = options;
  const { rope, hiddenSize, normEpsilon } = spec;
  return await runJob(
    () =>
      native().prunerLoad(nativeLayer(checkpoint, spec.layers[layer]!), [...checkpoint.files], {
        gpu,
        threads,
        rope,
        hiddenSize,
        normEpsilon,
        allowNonfinite,
      }),
    signal,
    { file: checkpoint.dir },
  );
}
