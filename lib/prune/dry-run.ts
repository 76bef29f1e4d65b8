/** What a pruning run would do, found out without writing anything. */
import { openCheckpoint } from '../checkpoint/checkpoint.ts';
import { OutputFolder } from '../checkpoint/output.ts';
import { refusePacked } from '../checkpoint/packed-layout.ts';
import { describeModel } from '../models/registry.ts';
import { expertMatrices } from '../models/targets.ts';
import { gpuOf } from '../runtime/device.ts';
import { calibrate, needsCalibration } from './calibrate.ts';
import { stepsOf } from './layer.ts';
import { type LayerMemory, memoryLimit, mostMemory } from './memory.ts';
import { checkPackedCopy } from './packed-copy.ts';
import { progressReporter } from './progress.ts';
import { bytesNeeded, type PruneOptions, recipeOptions } from './prune.ts';
import { checkRecipe, type Recipe, resolveRecipe } from './recipe.ts';
import { kindOf } from './stages/index.ts';

export interface DryRunLayer {
  readonly layer: number;
  readonly matrices: number;
  readonly weights: number;
  /** Weights that the budget zeroes; a method with a threshold zeroes those equal to it too, so a few more. */
  readonly zeros: number;
}

export interface DryRunResult {
  /** Absolute path of the folder that would be made. */
  readonly output: string;
  readonly recipe: Recipe;
  readonly layers: readonly DryRunLayer[];
  readonly matrices: number;
  readonly weights: number;
  readonly zeros: number;
  /** Room that the run needs on the output's disk; less stays there. */
  readonly bytesNeeded: number;
  /** What the run takes at its peak, in the layer that takes most; a model that writes its own text is in memory whole before. */
  readonly memory: LayerMemory;
  /** null where the method needs none; of `self` the text is not written, and the count is what would be asked for. */
  readonly calibration: { readonly sequences: number; readonly tokens: number; readonly source: string } | null;
  readonly warnings: readonly string[];
}

/**
 * Checks options, checkpoint, calibration data and output as `prune` does, and throws what it would. The weights are not
 * read: NaN or infinity among them shows only in the run itself.
 */
export async function dryRun(options: PruneOptions): Promise<DryRunResult> {
  const recipe = resolveRecipe(recipeOptions(options));
  const { threads = 0 } = options;
  const limit = memoryLimit(options);
  const gpu = gpuOf(options.device ?? 'cpu');
  checkPackedCopy(options, recipe);
  using checkpoint = openCheckpoint(options.model);
  refusePacked(checkpoint);
  checkpoint.validate();
  const { spec, warnings } = describeModel(checkpoint.config, checkpoint);
  const progress = progressReporter(options.onProgress, spec.layers.length, stepsOf(recipe));
  for (const message of warnings) progress.warn(message);
  checkRecipe(recipe, options, spec);
  const layers = spec.layers.map((_, layer): DryRunLayer => ({ layer, matrices: 0, weights: 0, zeros: 0 }));
  for (const { layer, part, expert, source } of expertMatrices(spec)) {
    const routed = spec.layers[layer]!.feedForward[part]!;
    if (routed.kind === 'routed' && expert >= expertsLeft(recipe, routed.experts.length)) continue;
    const [rows, cols] = source.shape as [number, number];
    const { matrices, weights, zeros } = layers[layer]!;
    layers[layer] = {
      layer,
      matrices: matrices + 1,
      weights: weights + rows * cols,
      zeros: zeros + zerosOf(recipe, rows, cols),
    };
  }
  const { calibration, lengths } = await foreseeCalibration();
  const needed = bytesNeeded(checkpoint, spec, recipe, calibration?.tokens ?? 0);
  const output = OutputFolder.check({ ...options, input: options.model }, needed);
  const sum = (field: 'matrices' | 'weights' | 'zeros') => layers.reduce((total, layer) => total + layer[field], 0);
  return {
    output,
    recipe,
    layers,
    matrices: sum('matrices'),
    weights: sum('weights'),
    zeros: sum('zeros'),
    bytesNeeded: needed,
    memory: mostMemory({ checkpoint, spec, recipe, lengths, limit, threads, gpu }),
    calibration,
    warnings: progress.warnings,
  };

  async function foreseeCalibration(): Promise<{ calibration: DryRunResult['calibration']; lengths: number[] }> {
    if (options.calibration === 'self' && needsCalibration(recipe)) {
      const { samples: sequences } = recipe;
      const lengths = Array.from({ length: sequences }, () => Math.min(recipe.sequenceLength, spec.maxPositions));
      const tokens = sequences * lengths[0]!;
      return { calibration: { sequences, tokens, source: 'written by the model itself' }, lengths };
    }
    const found = await calibrate(options, recipe, spec, progress);
    if (found === undefined) return { calibration: null, lengths: [] };
    const { count, ids, source, sequences } = found;
    const calibration = { sequences: count, tokens: ids.length, source };
    return { calibration, lengths: sequences.map(({ length }) => length) };
  }
}

function expertsLeft({ stages }: Recipe, experts: number): number {
  return stages.reduce((left, stage) => kindOf(stage).keeps?.(stage, left) ?? left, experts);
}

/** Of the stage that leaves the most. */
function zerosOf({ stages }: Recipe, rows: number, cols: number): number {
  return Math.max(0, ...stages.map((stage) => kindOf(stage).zeros(stage, rows, cols)));
}
