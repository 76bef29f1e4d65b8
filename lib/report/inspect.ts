/** What a checkpoint holds. */
import { throwIfAborted } from '../abort.ts';
import { countKept } from '../checkpoint/bitmask.ts';
import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { isFloatDType, tensorBytes } from '../checkpoint/dtype.ts';
import { bitmaskBytes } from '../checkpoint/sparse-layout.ts';
import { describeModel } from '../models/registry.ts';
import type { LayerSpec, ModelSpec, WeightSource } from '../models/spec.ts';
import { countParameters, expertMatrices, type ParameterCounts } from '../models/targets.ts';
import { type NativeMoments, native, runJob } from '../native.ts';
import { type Manifest, readManifest } from '../prune/manifest.ts';
import { countSparsity, type Kurtosis, kurtosisOf, type SparsityCount } from '../prune/report.ts';
import { nativeMatrix } from '../runtime/native-spec.ts';

export interface InspectOptions {
  /** Threads of the native code; 0: one for each core. @default 0 */
  threads?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Layers counted, of how many. */
  onProgress?: ((done: number, total: number) => void) | undefined;
  onWarning?: ((message: string) => void) | undefined;
}

export interface LayerInspection extends SparsityCount {
  readonly layer: number;
  /** Routed experts and how many of them a token goes to; 0 in a layer without a router. */
  readonly experts: number;
  readonly topK: number;
  /** Of the routed experts' weights. */
  readonly kurtosis: Kurtosis;
}

/** Zeros and sparsity count the routed experts' matrices. */
export interface Inspection extends SparsityCount {
  readonly path: string;
  /** `model_type` of config.json. */
  readonly family: string;
  readonly hiddenSize: number;
  readonly vocabularySize: number;
  readonly maxPositions: number;
  readonly parameters: ParameterCounts;
  readonly bytes: {
    /** As the checkpoint stores its tensors. */
    readonly stored: number;
    /** All tensors dense. */
    readonly dense: number;
    /** Expert matrices as bitmask where that is smaller, the rest dense. */
    readonly sparse: number;
  };
  readonly storage: 'dense' | 'sparse' | 'packed';
  readonly layers: readonly LayerInspection[];
  /** What espalier.json says was done to it. */
  readonly pruned: Manifest | undefined;
}

/** Reads every expert matrix to count its zeros and measure its kurtosis. Throws what openCheckpoint and describeModel say, `ABORTED`. */
export async function inspect(path: string, options: InspectOptions = {}): Promise<Inspection> {
  using checkpoint = openCheckpoint(path);
  checkpoint.validate();
  const { spec, warnings } = describeModel(checkpoint.config, checkpoint);
  for (const warning of warnings) options.onWarning?.(warning);
  const layers: LayerInspection[] = [];
  let saved = 0;
  for (const [index, layer] of spec.layers.entries()) {
    throwIfAborted(options.signal);
    const counted = await countLayer(checkpoint, spec, index);
    saved += counted.saved;
    const kurtosis = kurtosisOf(await momentsOf(checkpoint, spec, index, options));
    layers.push({ layer: index, ...routing(layer), ...countSparsity([counted]), kurtosis });
    options.onProgress?.(index + 1, spec.layers.length);
  }
  return {
    path: checkpoint.dir,
    family: spec.family,
    hiddenSize: spec.hiddenSize,
    vocabularySize: spec.vocabularySize,
    maxPositions: spec.maxPositions,
    parameters: countParameters(spec),
    bytes: { stored: checkpoint.storedBytes, dense: checkpoint.denseBytes, sparse: checkpoint.denseBytes - saved },
    storage: checkpoint.storage,
    ...countSparsity(layers),
    layers,
    pruned: readManifest(checkpoint.dir),
  };
}

function routing({ feedForward }: LayerSpec): { experts: number; topK: number } {
  const routed = feedForward.filter((part) => part.kind === 'routed');
  return {
    experts: routed.reduce((sum, { experts }) => sum + experts.length, 0),
    topK: routed.reduce((sum, { router }) => sum + router.topK, 0),
  };
}

/** Zeros of a layer's expert matrices, and what a bitmask would save of their bytes. */
async function countLayer(checkpoint: Checkpoint, spec: ModelSpec, layer: number) {
  let [zeros, size, saved] = [0, 0, 0];
  for (const matrix of expertMatrices({ ...spec, layers: [spec.layers[layer]!] })) {
    const { dtype, rows, cols, kept } = await countMatrix(checkpoint, matrix.source);
    zeros += rows * cols - kept;
    size += rows * cols;
    saved += Math.max(0, tensorBytes(dtype, [rows, cols]) - bitmaskBytes(dtype, rows, cols, kept));
  }
  return { zeros, size, saved };
}

async function momentsOf(
  checkpoint: Checkpoint,
  spec: ModelSpec,
  layer: number,
  { threads = 0, signal }: InspectOptions,
): Promise<NativeMoments[]> {
  const found: NativeMoments[] = [];
  for (const { source } of expertMatrices({ ...spec, layers: [spec.layers[layer]!] })) {
    const weight = nativeMatrix(checkpoint, source);
    found.push(await runJob(() => native().weightMoments(weight, [...checkpoint.files], threads), signal));
  }
  return found;
}

async function countMatrix(checkpoint: Checkpoint, { tensor, shape, slice }: WeightSource) {
  const source = checkpoint.source(tensor);
  const { dtype } = source;
  if (!isFloatDType(dtype)) throw new Error(`unreachable: ${tensor} is ${dtype}`);
  const [rows, cols] = shape as [number, number];
  const first = slice === undefined ? 0 : slice.expert * slice.of[1]! + slice.row;
  const rowBytes = tensorBytes(dtype, [cols]);
  const bytes = await source.read(first * rowBytes, (first + rows) * rowBytes);
  const kept = countKept(bytes, cols, rowBytes / cols === 2 ? 2 : 4).reduce((sum, count) => sum + count, 0);
  return { dtype, rows, cols, kept };
}
