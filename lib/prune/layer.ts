/** One decoder layer: statistics, pruning, its outputs for the next layer, its tensors. */
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { type DType, tensorBytes } from '../checkpoint/dtype.ts';
import type { TensorSource } from '../checkpoint/tensor.ts';
import type { LayerSpec, ModelSpec, WeightSource } from '../models/spec.ts';
import { type NativePruner, native, runJob } from '../native.ts';
import { nativeLayer } from '../runtime/native-spec.ts';
import { methods, nativePlan } from './methods.ts';
import type { Recipe } from './recipe.ts';
import { type LayerReport, layerReport } from './report.ts';

export type LayerStage = 'statistics' | 'prune' | 'forward';

export interface LayerRun {
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  readonly layer: number;
  readonly recipe: Recipe;
  readonly threads: number;
  /** Tokens of each calibration sequence. */
  readonly lengths: Int32Array;
  /** Hidden states to read, and to write for the next layer; undefined where the method needs none. */
  readonly input: string | undefined;
  readonly output: string | undefined;
  readonly signal: AbortSignal | undefined;
  /** `done` of `total` tokens or matrices of a stage. */
  readonly onStage: (stage: LayerStage, done: number, total: number) => void;
}

export interface PrunedLayer {
  readonly report: LayerReport;
  /** The layer's tensors under the names of the source checkpoint. */
  readonly tensors: readonly TensorSource[];
  dispose(): void;
}

/**
 * Collects the layer's statistics from its dense forward, prunes it, and runs it again, so that the next layer is
 * calibrated on what it will get (Wanda and SparseGPT do so; see MoE-Pruner, section 3.3, "layer-wise").
 */
export async function pruneLayer(run: LayerRun): Promise<PrunedLayer> {
  const { checkpoint, spec, recipe, signal } = run;
  const layer = spec.layers[run.layer]!;
  const { rope, hiddenSize, normEpsilon } = spec;
  const options = { threads: run.threads, rope, hiddenSize, normEpsilon, allowNonfinite: recipe.allowNonfinite };
  const pruner = await runJob(
    () => native().prunerLoad(nativeLayer(checkpoint, layer), [...checkpoint.files], options),
    signal,
    { file: checkpoint.dir },
  );
  try {
    const isRouted = layer.feedForward.some(({ kind }) => kind === 'routed');
    if (isRouted && run.input !== undefined) await forward(run, pruner, 'statistics', run.input, undefined);
    const matrices = isRouted
      ? await runJob(
          () =>
            native().prunerPrune(pruner, nativePlan(recipe.method, recipe.budget), (done, total) =>
              run.onStage('prune', done, total),
            ),
          signal,
          { file: checkpoint.dir },
        )
      : [];
    if (run.input !== undefined && run.output !== undefined)
      await forward(run, pruner, 'forward', run.input, run.output);
    return {
      report: layerReport(run.layer, matrices),
      tensors: layerTensors(checkpoint, layer, pruner),
      dispose: () => native().prunerDispose(pruner),
    };
  } catch (error) {
    native().prunerDispose(pruner);
    throw error;
  }
}

async function forward(
  { recipe, lengths, signal, onStage }: LayerRun,
  pruner: NativePruner,
  stage: 'statistics' | 'forward',
  input: string,
  output: string | undefined,
): Promise<void> {
  const collect = stage === 'statistics';
  const request = {
    input,
    lengths,
    collect,
    gram: collect && methods[recipe.method].statistics === 'gram',
    routerWeighted: recipe.routerWeighting,
    ...(output === undefined ? {} : { output }),
  };
  await runJob(() => native().prunerForward(pruner, request, (done, total) => onStage(stage, done, total)), signal);
}

/** Names of the tensors a layer uses. */
export function layerTensorNames(layer: LayerSpec): Set<string> {
  const names = new Set<string>();
  const visit = (value: unknown) => {
    if (typeof value !== 'object' || value === null) return;
    if ('tensor' in value) names.add((value as WeightSource).tensor);
    else for (const child of Object.values(value)) visit(child);
  };
  visit(layer);
  return names;
}

function layerTensors(checkpoint: Checkpoint, layer: LayerSpec, pruner: NativePruner): TensorSource[] {
  const pruned = prunedParts(layer, pruner);
  return [...layerTensorNames(layer)].map((name) => {
    const parts = pruned.get(name);
    if (parts === undefined) return checkpoint.source(name);
    const { dtype, shape } = checkpoint.get(name);
    return assembled(name, dtype, shape, parts);
  });
}

/** A pruned matrix and where it stands, in elements, in the tensor that holds it. */
interface Part {
  readonly offset: number;
  readonly elements: number;
  /** Bytes [begin, end) of the matrix. */
  read(begin: number, end: number): Uint8Array;
}

function prunedParts(layer: LayerSpec, pruner: NativePruner): Map<string, Part[]> {
  const byTensor = new Map<string, Part[]>();
  for (const [index, part] of layer.feedForward.entries()) {
    if (part.kind !== 'routed') continue;
    for (const [expert, mlp] of part.experts.entries()) {
      for (const role of ['gate', 'up', 'down'] as const) {
        const { tensor, shape, slice } = mlp[role];
        const [rows, cols] = shape as [number, number];
        const offset = slice === undefined ? 0 : (slice.expert * slice.of[1]! + slice.row) * cols;
        const read = (begin: number, end: number) => native().prunerTensor(pruner, index, expert, role, begin, end);
        byTensor.set(tensor, [...(byTensor.get(tensor) ?? []), { offset, elements: rows * cols, read }]);
      }
    }
  }
  return byTensor;
}

/** A tensor put together from pruned matrices that cover it. */
function assembled(name: string, dtype: DType, shape: readonly number[], parts: readonly Part[]): TensorSource {
  const width = tensorBytes(dtype, [1]);
  const sorted = [...parts].sort((a, b) => a.offset - b.offset);
  return {
    name,
    dtype,
    shape,
    read(begin, end) {
      const out = new Uint8Array(end - begin);
      for (const part of sorted) {
        const first = part.offset * width;
        const last = first + part.elements * width;
        if (last <= begin || first >= end) continue;
        const from = Math.max(begin, first);
        out.set(part.read(from - first, Math.min(end, last) - first), from - begin);
      }
      return out;
    },
  };
}
