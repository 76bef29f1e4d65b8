/** Prunes a checkpoint layer by layer, each finished layer durable. */
import { join, resolve } from 'node:path';
import { throwIfAborted } from '../abort.ts';
import { writeFileAtomic } from '../checkpoint/atomic-file.ts';
import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { setFields } from '../checkpoint/config-fields.ts';
import { markSparse, unmarkSparse } from '../checkpoint/config-text.ts';
import { copyFiles } from '../checkpoint/copy-files.ts';
import { OutputFolder } from '../checkpoint/output.ts';
import { refusePacked } from '../checkpoint/packed-layout.ts';
import { writeShardIndex } from '../checkpoint/shard-index.ts';
import { stateExperts } from '../models/experts-config.ts';
import { describeModel } from '../models/registry.ts';
import type { ModelSpec } from '../models/spec.ts';
import { native } from '../native.ts';
import { type DeviceName, gpuOf } from '../runtime/device.ts';
import type { Weights } from '../runtime/weights.ts';
import { version } from '../version.ts';
import { LayersInTurn } from './ahead.ts';
import { type Calibration, type CalibrationSource, calibrate } from './calibrate.ts';
import { checkFiniteOutsideLayers } from './finite.ts';
import { loadDense, pruneLayer, stepsOf } from './layer.ts';
import { type Manifest, manifestName, readManifest } from './manifest.ts';
import { layerMemory, memoryLimit } from './memory.ts';
import { checkPackedCopy, writePackedCopy } from './packed-copy.ts';
import { type ProgressReporter, type PruneProgress, progressReporter } from './progress.ts';
import { checkRecipe, type Recipe, type RecipeOptions, resolveRecipe } from './recipe.ts';
import { countSparsity, type LayerReport, runWarnings, type SparsityCount } from './report.ts';
import { runIdentity } from './run-identity.ts';
import { RunState } from './run-state.ts';
import { shardOf, writeRest, writeShard } from './shards.ts';
import { kindOf } from './stages/index.ts';
import { denseWalk, writeHidden } from './walk.ts';

export interface PruneOptions extends RecipeOptions {
  /** Folder of the checkpoint to prune. It is never written to. */
  model: string;
  /** Folder to make. */
  output: string;
  /**
   * Where calibration tokens come from: a file (text, `.jsonl`, `.parquet`, `.u16`, `.u32`), texts, token ids, or
   * `self`: the model writes its own. Needed by every method but magnitude.
   */
  calibration?: CalibrationSource | undefined;
  /** Go on where an unfinished run at the same output stopped. @default false */
  resume?: boolean | undefined;
  /** Replace a checkpoint at the output, and discard an unfinished run. @default false */
  overwrite?: boolean | undefined;
  /**
   * Folder to make beside the output: the same result packed, as `packCheckpoint` does it. Experts that the recipe rounds are
   * stored in the codes and scales that it chose for them. @default no packed copy
   */
  packed?: string | undefined;
  /** What matrices of the packed copy become. @default the experts as the recipe rounds them, all else as it is */
  weights?: Weights | undefined;
  /**
   * Where layers run and their statistics are summed: `cpu`, or a GPU, `cuda` or `cuda:1`. Weights are chosen and updated on the
   * CPU either way. Masks are the same on both but for near ties.
   * @default 'cpu'
   */
  device?: DeviceName | undefined;
  /** Threads of the native code; 0: one for each core. The result does not depend on it. @default 0 */
  threads?: number | undefined;
  /**
   * Memory, in GiB, that the run may take: as many experts' Gram matrices are held at once as fit. Where one at a time is more
   * than that already, it takes more; `dryRun` says how much. The result does not depend on it.
   * @default half of the machine's memory, or of what the process is held to
   */
  memoryGiB?: number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: PruneProgress) => void) | undefined;
}

export interface PruneResult extends SparsityCount {
  /** Absolute path of the folder made. */
  readonly output: string;
  readonly recipe: Recipe;
  readonly layers: readonly LayerReport[];
  readonly warnings: readonly string[];
  /** Layers that an earlier run had finished. */
  readonly resumedLayers: number;
  /** The output was finished by an earlier run and `resume` found nothing to do. */
  readonly alreadyFinished: boolean;
}

/**
 * Prunes the routed experts of a checkpoint and writes the result as a new one. Memory holds one decoder layer and the
 * statistics of some of its experts; hidden states are kept on the output's disk. Throws `USAGE` and `RECIPE` for options, `DATA`
 * for calibration data, `NONFINITE` for weights with NaN or infinity, what openCheckpoint and describeModel say of the model,
 * `DEVICE` and `OUT_OF_MEMORY` for the GPU, `OUTPUT`, `LOCKED`, `RESUME`, `NO_SPACE` and `IO` for the output, `ABORTED` when
 * stopped; a stopped or failed run keeps its finished layers for `resume`, and leaves nothing if there are none.
 */
export async function prune(options: PruneOptions): Promise<PruneResult> {
  const recipe = resolveRecipe(recipeOptions(options));
  memoryLimit(options);
  const gpu = gpuOf(options.device ?? 'cpu');
  checkPackedCopy(options, recipe);
  const result = await pruneCheckpoint(options, recipe, gpu);
  await writePackedCopy(options, recipe);
  return result;
}

async function pruneCheckpoint(options: PruneOptions, recipe: Recipe, gpu: number | undefined): Promise<PruneResult> {
  using checkpoint = openCheckpoint(options.model);
  refusePacked(checkpoint);
  const { spec, warnings } = describeModel(checkpoint.config, checkpoint);
  const progress = progressReporter(options.onProgress, spec.layers.length, stepsOf(recipe));
  for (const message of warnings) progress.warn(message);

  const done = options.resume ? readManifest(resolve(options.output)) : undefined;
  // Calibration can take minutes; what will be refused is refused before.
  checkRecipe(recipe, options, spec);
  if (done === undefined) OutputFolder.check({ ...options, input: options.model }, 0);
  const sequences = await calibrate(options, recipe, spec, progress);
  const run = runIdentity(checkpoint, recipe, sequences, gpu);
  if (done?.run === run) return alreadyFinished(options.output, recipe, done);

  if (!recipe.allowNonfinite) await checkFiniteOutsideLayers(checkpoint, spec, options.signal);

  const folder = OutputFolder.open({ ...options, input: options.model });
  const state = new RunState(folder.partial, run);
  try {
    const unusable = folder.resumed ? await state.resume() : undefined;
    if (unusable !== undefined) progress.warn(`the unfinished run cannot be continued (${unusable}); starting again`);
    const resumedLayers = state.layers.length;
    if (resumedLayers === 0) {
      state.reset();
      folder.requireSpace(bytesNeeded(checkpoint, spec, recipe, sequences?.ids.length ?? 0));
    } else {
      progress.resumed(resumedLayers);
    }

    await pruneLayers({ options, gpu, recipe, checkpoint, spec, sequences, folder, state, progress });
    const layers = state.layers.map(({ report }) => report);
    for (const message of runWarnings(layers)) progress.warn(message);
    const total = countSparsity(layers);
    const rest = await writeRest(checkpoint, spec, recipe, folder.partial, options.signal);
    const shards = [...state.layers.map(({ shard }) => shard), rest];
    await writeShardIndex(folder.partial, recipe.save, new Map(shards.map(({ name, tensors }) => [name, tensors])));
    await copyFiles(
      checkpoint.dir,
      folder.partial,
      checkpoint.otherFiles().filter((name) => name !== manifestName),
      options.signal,
    );
    const manifest: Manifest = {
      format: 2,
      version,
      run,
      recipe,
      calibration:
        sequences === undefined
          ? null
          : { sha256: sequences.hash, tokens: sequences.ids.length, source: sequences.source },
      ...total,
      layers,
    };
    await writeFileAtomic(join(folder.partial, manifestName), `${JSON.stringify(manifest, null, 2)}\n`);
    const sourceConfig = checkpoint.isSparse ? unmarkSparse(checkpoint.configText) : checkpoint.configText;
    const plainConfig = setFields(sourceConfig, changedFields(checkpoint, recipe, state));
    // Without its config.json a folder is no checkpoint: it comes last.
    await writeFileAtomic(
      join(folder.partial, 'config.json'),
      recipe.save === 'sparse' ? markSparse(plainConfig) : plainConfig,
    );
    throwIfAborted(options.signal);
    await folder.finish();
    RunState.clear(folder.output);
    return {
      output: folder.output,
      recipe,
      layers,
      ...total,
      warnings: progress.warnings,
      resumedLayers,
      alreadyFinished: false,
    };
  } catch (error) {
    if (state.isWorthless) folder.discard();
    else folder.release();
    throw error;
  }
}

/** The fields of config.json that the stages change. */
function changedFields({ config }: Checkpoint, { stages }: Recipe, { prepared = [] }: RunState): Map<string, unknown> {
  const changed = new Map<string, unknown>();
  for (const [i, stage] of stages.entries()) {
    const left = kindOf(stage).leaves?.(stage, prepared[i]);
    if (left === undefined) continue;
    for (const [name, value] of stateExperts(config, left).fields) changed.set(name, value);
  }
  return changed;
}

/**
 * What a run needs on the output's disk: all tensors dense, the hidden states before and after a layer, what a stage keeps
 * of the same size while it works, the small files.
 */
export function bytesNeeded(checkpoint: Checkpoint, spec: ModelSpec, { stages }: Recipe, tokens: number): number {
  const hiddenFiles = 2 + Math.max(...stages.map((stage) => kindOf(stage).hiddenFiles?.(stage) ?? 0));
  return checkpoint.denseBytes + tokens * spec.hiddenSize * 4 * hiddenFiles + 2 ** 20;
}

export function recipeOptions(options: PruneOptions): RecipeOptions {
  const {
    model: _m,
    output: _o,
    calibration: _c,
    resume: _r,
    overwrite: _w,
    packed: _k,
    weights: _v,
    device: _d,
    threads: _t,
    memoryGiB: _g,
    signal: _s,
    onProgress: _p,
    ...rest
  } = options;
  return rest;
}

interface LayersRun {
  options: PruneOptions;
  gpu: number | undefined;
  recipe: Recipe;
  checkpoint: Checkpoint;
  spec: ModelSpec;
  sequences: Calibration | undefined;
  folder: OutputFolder;
  state: RunState;
  progress: ProgressReporter;
}

async function pruneLayers({
  options,
  gpu,
  recipe,
  checkpoint,
  spec,
  sequences,
  folder,
  state,
  progress,
}: LayersRun): Promise<void> {
  const { signal, threads = 0 } = options;
  const prepared = await prepareStages({ options, gpu, recipe, checkpoint, spec, sequences, state, progress });
  const readsLayers = recipe.stages.some((stage) => {
    const kind = kindOf(stage);
    return kind.readsLayers?.(stage) ?? kind.needsCalibration(stage);
  });
  const needsHidden = sequences !== undefined && readsLayers;
  if (needsHidden && state.layers.length === 0) {
    await writeHidden(checkpoint, spec, sequences, state.hiddenPath(0), signal);
  }
  const lengths = Int32Array.from(sequences?.sequences ?? [], ({ length }) => length);
  const memoryOptions = { checkpoint, spec, recipe, lengths, limit: memoryLimit(options), threads, gpu };
  const { allowNonfinite } = recipe;
  await using layers = new LayersInTurn({
    load: (layer) => loadDense({ checkpoint, spec, layer, gpu, threads, allowNonfinite, runs: needsHidden, signal }),
    dispose: ({ pruner }) => native().prunerDispose(pruner),
  });
  for (let layer = state.layers.length; layer < spec.layers.length; layer++) {
    throwIfAborted(signal);
    const isLast = layer === spec.layers.length - 1;
    const memory = layerMemory(memoryOptions, layer);
    const pruned = await pruneLayer({
      ...(await layers.take(layer)),
      checkpoint,
      spec,
      layer,
      recipe,
      prepared,
      memory,
      lengths,
      input: needsHidden ? state.hiddenPath(layer) : undefined,
      output: needsHidden && !isLast ? state.hiddenPath(layer + 1) : undefined,
      signal,
      onStagesDone: () => memory.ahead > 0 && layers.begin(layer + 1),
      onStep: (step, done, total) => progress.step(layer, step, done, total),
    });
    try {
      progress.step(layer, stepsOf(recipe).length - 1, 0, 1);
      const shard = await writeShard(folder.partial, shardOf(layer, spec, recipe.save), pruned.tensors, recipe, signal);
      await state.add({ shard, report: pruned.report }, needsHidden && !isLast);
    } finally {
      pruned.dispose();
    }
    progress.layerDone(pruned.report);
  }
}

/** What each stage decides for the whole model; of a resumed run, what it had decided. */
async function prepareStages({
  options,
  gpu,
  recipe,
  checkpoint,
  spec,
  sequences,
  state,
  progress,
}: Omit<LayersRun, 'folder'>): Promise<readonly unknown[]> {
  if (state.prepared !== undefined) return state.prepared;
  const { signal, threads = 0 } = options;
  const { allowNonfinite, seed } = recipe;
  const hiddenPath = (layer: number) => state.hiddenPath(layer);
  const walk = denseWalk({
    checkpoint,
    spec,
    calibration: sequences,
    gpu,
    threads,
    allowNonfinite,
    hiddenPath,
    signal,
  });
  const warn = (message: string) => progress.warn(message);
  const prepared: unknown[] = [];
  for (const stage of recipe.stages) {
    prepared.push(
      (await kindOf(stage).prepare?.(stage, { checkpoint, spec, seed, threads, signal, warn, walk })) ?? null,
    );
  }
  state.prepared = prepared;
  return prepared;
}

function alreadyFinished(output: string, recipe: Recipe, { layers, zeros, size, sparsity }: Manifest): PruneResult {
  OutputFolder.tidy(output);
  RunState.clear(resolve(output));
  return {
    output: resolve(output),
    recipe,
    layers,
    zeros,
    size,
    sparsity,
    warnings: [],
    resumedLayers: layers.length,
    alreadyFinished: true,
  };
}
