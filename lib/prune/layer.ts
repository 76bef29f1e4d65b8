/** One decoder layer: the stages of the recipe, its outputs for the next layer, its tensors. */
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { type DType, tensorBytes } from '../checkpoint/dtype.ts';
import type { TensorSource } from '../checkpoint/tensor.ts';
import type { LayerSpec, ModelSpec, WeightSource } from '../models/spec.ts';
import {
  type NativeForward,
  type NativeMatrixMoments,
  type NativePruner,
  type NativeSurvey,
  type NativeSurveyRequest,
  native,
  runJob,
} from '../native.ts';
import type { LayerMemory } from './memory.ts';
import type { Recipe } from './recipe.ts';
import { kurtosisOf, type LayerReport, layerReport } from './report.ts';
import { kindOf } from './stages/index.ts';
import type { CalibratedLayer, RestructuredLayer, StageOutcome, Step } from './stages/stage.ts';
import { type LoadLayer, loadLayer } from './walk.ts';

/** A layer as the checkpoint has it. */
export interface LoadedLayer {
  readonly pruner: NativePruner;
  /** None where it has no routed experts. */
  readonly matrices: readonly NativeMatrixMoments[];
}

export interface LayerRun extends LoadedLayer {
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  readonly layer: number;
  readonly recipe: Recipe;
  /** What each stage of the recipe prepared for the whole run. */
  readonly prepared: readonly unknown[];
  readonly memory: LayerMemory;
  /** Tokens of each calibration sequence. */
  readonly lengths: Int32Array;
  /** Hidden states to read, and to write for the next layer; undefined where the recipe needs none. */
  readonly input: string | undefined;
  readonly output: string | undefined;
  readonly signal: AbortSignal | undefined;
  /** Called when only the forward for the next layer and writing are left. */
  readonly onStagesDone: () => void;
  /** `done` of `total` of one of the steps of stepsOf. */
  readonly onStep: (step: number, done: number, total: number) => void;
}

export interface PrunedLayer {
  readonly report: LayerReport;
  /** The layer's tensors under the names of the source checkpoint. */
  readonly tensors: readonly TensorSource[];
  dispose(): void;
}

function needsDense({ stages }: Pick<Recipe, 'stages'>): boolean {
  return stages.some((stage) => kindOf(stage).needsDense === true);
}

/** What is done to each layer: the steps of its stages, then its forward for the next layer, then writing it. */
export function stepsOf({ stages }: Pick<Recipe, 'stages'>): Step[] {
  return [
    ...(needsDense({ stages }) ? [{ name: 'dense', weight: 23 }] : []),
    ...stages.flatMap((stage) => kindOf(stage).steps(stage)),
    { name: 'forward', weight: 23 },
    { name: 'write', weight: 2 },
  ];
}

/** Loads a layer and looks at its weights; `runs`: it will run over the calibration set. To be given to prunerDispose. */
export async function loadDense(options: LoadLayer & { readonly runs: boolean }): Promise<LoadedLayer> {
  const { spec, layer, runs, signal } = options;
  const pruner = await loadLayer(options);
  try {
    const matrices = isRouted(spec.layers[layer]!) ? await measure(pruner, signal) : [];
    if (runs) await runJob(() => native().prunerPrepare(pruner), signal);
    return { pruner, matrices };
  } catch (error) {
    native().prunerDispose(pruner);
    throw error;
  }
}

function isRouted({ feedForward }: LayerSpec): boolean {
  return feedForward.some(({ kind }) => kind === 'routed');
}

/**
 * Runs the stages on the layer, and runs the result on the calibration set, so that the next layer is calibrated on what it
 * will get (Wanda and SparseGPT do so; see MoE-Pruner, section 3.3, "layer-wise"). Disposes of it where that fails.
 */
export async function pruneLayer(run: LayerRun): Promise<PrunedLayer> {
  const { checkpoint, spec, recipe, pruner, signal, onStep } = run;
  const layer = spec.layers[run.layer]!;
  try {
    const outcomes: StageOutcome[] = [];
    let { matrices } = run;
    const kurtosis: LayerReport['kurtosis'][number][] = [{ after: null, ...kurtosisOf(matrices) }];
    const calibrated = await denseOutput(run, pruner);
    let firstStep = needsDense(recipe) ? 1 : 0;
    for (const [i, stage] of recipe.stages.entries()) {
      const kind = kindOf(stage);
      const step = firstStep;
      firstStep += kind.steps(stage).length;
      if (!isRouted(layer)) continue;
      const outcome = await kind.run(stage, {
        checkpoint,
        spec,
        layer: run.layer,
        pruner,
        calibrated,
        source: checkpoint.dir,
        signal,
        prepared: run.prepared[i],
        collect: async (request, own) => {
          if (run.input === undefined) return;
          const collect = { ...request, together: run.memory.together[i]!, scratch: `${run.input}.statistics` };
          await forward(run, pruner, step + own, { collect });
        },
        survey: (request, own) => survey(run, pruner, step + own, request),
        progress: (own, done, total) => onStep(step + own, done, total),
      });
      outcomes.push(outcome);
      matrices = await measure(pruner, signal);
      kurtosis.push({ after: stage.stage, ...kurtosisOf(matrices) });
    }
    run.onStagesDone();
    if (run.output !== undefined) {
      await forward(run, pruner, firstStep, { output: run.output });
    }
    return {
      report: layerReport(run.layer, matrices, outcomes, kurtosis),
      tensors: layerTensors(checkpoint, restructuredBy(outcomes) ?? asItWas(layer), pruner),
      dispose: () => native().prunerDispose(pruner),
    };
  } catch (error) {
    native().prunerDispose(pruner);
    throw error;
  }
}

/**
 * Runs the dense layer on the dense model's hidden states, where a stage compares with them. They lie behind those of the
 * pruned model in the same files; what the first layer reads is the same for both.
 */
async function denseOutput(run: LayerRun, pruner: NativePruner): Promise<CalibratedLayer | undefined> {
  const { input, lengths } = run;
  if (input === undefined) return undefined;
  const firstDense = lengths.reduce((sum, length) => sum + length, 0);
  const dense = run.output ?? `${input}.dense`;
  if (needsDense(run.recipe)) {
    const firstInput = run.layer === 0 ? 0 : firstDense;
    const rows = { firstInput, output: dense, firstOutput: firstDense };
    await forward(run, pruner, 0, rows);
  }
  return { input, lengths, dense, firstDense };
}

async function measure(pruner: NativePruner, signal: AbortSignal | undefined): Promise<NativeMatrixMoments[]> {
  return await runJob(() => native().prunerMeasure(pruner), signal);
}

async function forward(
  { input, lengths, signal, onStep }: LayerRun,
  pruner: NativePruner,
  step: number,
  request: Omit<NativeForward, 'input' | 'lengths'>,
): Promise<void> {
  await runJob(
    () =>
      native().prunerForward(pruner, { ...request, input: input!, lengths }, (done, total) =>
        onStep(step, done, total),
      ),
    signal,
  );
}

async function survey(
  { input, lengths, signal, onStep }: LayerRun,
  pruner: NativePruner,
  step: number,
  request: Partial<NativeSurveyRequest>,
): Promise<NativeSurvey[]> {
  if (input === undefined) return [];
  const whole = { logitProducts: false, meanOutputs: false, keep: 0, ...request, input, lengths };
  return await runJob(() => native().prunerSurvey(pruner, whole, (done, total) => onStep(step, done, total)), signal);
}

/** Names of the tensors a layer uses. */
export function layerTensorNames(layer: LayerSpec): Set<string> {
  return new Set(shapesOf(layer).keys());
}

/** Whole tensors, where experts are fused. */
function shapesOf(layer: LayerSpec): Map<string, readonly number[]> {
  const shapes = new Map<string, readonly number[]>();
  const visit = (value: unknown) => {
    if (typeof value !== 'object' || value === null) return;
    if ('tensor' in value) {
      const { tensor, shape, slice } = value as WeightSource;
      shapes.set(tensor, slice?.of ?? shape);
    } else for (const child of Object.values(value)) visit(child);
  };
  visit(layer);
  return shapes;
}

function restructuredBy(outcomes: readonly StageOutcome[]): RestructuredLayer | undefined {
  return outcomes.find(({ restructured }) => restructured !== undefined)?.restructured;
}

function asItWas(layer: LayerSpec): RestructuredLayer {
  return { layer, tensors: new Map(), expertOf: (_, expert) => expert };
}

function layerTensors(checkpoint: Checkpoint, stored: RestructuredLayer, pruner: NativePruner): TensorSource[] {
  const pruned = prunedParts(stored, pruner);
  return [...shapesOf(stored.layer)].map(([name, shape]) => {
    const { dtype } = checkpoint.get(name);
    const bytes = stored.tensors.get(name);
    if (bytes !== undefined) return { name, dtype, shape, read: (begin, end) => bytes.subarray(begin, end) };
    const parts = pruned.get(name);
    return parts === undefined ? checkpoint.source(name) : assembled(name, dtype, shape, parts);
  });
}

/** A pruned matrix and where it stands, in elements, in the tensor that holds it. */
interface Part {
  readonly offset: number;
  readonly elements: number;
  /** Bytes [begin, end) of the matrix. */
  read(begin: number, end: number): Uint8Array;
}

function prunedParts({ layer, expertOf }: RestructuredLayer, pruner: NativePruner): Map<string, Part[]> {
  const byTensor = new Map<string, Part[]>();
  for (const [index, part] of layer.feedForward.entries()) {
    if (part.kind !== 'routed') continue;
    for (const [expert, mlp] of part.experts.entries()) {
      for (const role of ['gate', 'up', 'down'] as const) {
        const { tensor, shape, slice } = mlp[role];
        const [rows, cols] = shape as [number, number];
        const offset = slice === undefined ? 0 : (slice.expert * slice.of[1]! + slice.row) * cols;
        const held = expertOf(index, expert);
        const read = (begin: number, end: number) => native().prunerTensor(pruner, index, held, role, begin, end);
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
