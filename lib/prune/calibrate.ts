/** The calibration sequences of a pruning run. */

import { selfCalibration } from '../calibration/self.ts';
import { calibrationSequences, type TokenSequences } from '../calibration/sequences.ts';
import { loadTokens, type TokenSource } from '../calibration/token-source.ts';
import { EspalierError } from '../errors.ts';
import type { ModelSpec } from '../models/spec.ts';
import { KV_BLOCK } from '../runtime/kv-blocks.ts';
import { Model } from '../runtime/model.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { ProgressReporter } from './progress.ts';
import type { PruneOptions } from './prune.ts';
import type { Recipe } from './recipe.ts';
import { kindOf } from './stages/index.ts';

/** Where calibration tokens come from; `self`: the model writes them. */
export type CalibrationSource = TokenSource | 'self';

export interface Calibration extends TokenSequences {
  /** For people: what the tokens came from. */
  readonly source: string;
}

const CHOICE = 16;

export function needsCalibration({ stages }: Recipe): boolean {
  return stages.some((stage) => kindOf(stage).needsCalibration(stage));
}

/** Undefined for a recipe that looks at no data. @throws USAGE if there is no source, DATA if it is no good */
export async function calibrate(
  options: PruneOptions,
  recipe: Recipe,
  spec: ModelSpec,
  progress: ProgressReporter,
): Promise<Calibration | undefined> {
  if (!needsCalibration(recipe)) {
    progress.calibrated(0, 0, 'none');
    return undefined;
  }
  const { calibration, model, signal, threads } = options;
  if (calibration === undefined) {
    throw new EspalierError(
      'USAGE',
      `${needing(recipe)} needs calibration text: give a file (text, .jsonl, .parquet, .u16, .u32), or "self" to let the model write its own`,
      { field: 'calibration' },
    );
  }
  const { samples, seed } = recipe;
  const sequenceLength = Math.min(recipe.sequenceLength, spec.maxPositions);
  const isSelf = calibration === 'self';
  let source: TokenSource = isSelf ? [] : calibration;
  if (isSelf) {
    const kvTokens = Math.ceil(sequenceLength / KV_BLOCK) * KV_BLOCK * Math.min(samples, 64);
    await using writer = await Model.load(model, { threads, signal, kvTokens });
    source = await selfCalibration(writer, { samples, sequenceLength, seed, signal });
  }
  const tokenizer = await Tokenizer.find(model);
  // Sequences are drawn from this many times what is needed; a corpus of gigabytes is not read to its end.
  const maxTokens = samples * sequenceLength * CHOICE;
  const documents = await loadTokens(source, { tokenizer, vocabularySize: spec.vocabularySize, maxTokens, signal });
  const sequences = calibrationSequences(documents, { samples, sequenceLength, seed });
  for (const warning of sequences.warnings) progress.warn(warning);
  const name = isSelf ? 'written by the model itself' : documents.name;
  progress.calibrated(sequences.count, sequences.ids.length, name);
  return { ...sequences, source: name };
}

/** The first stage that looks at data, for a message. */
function needing({ stages }: Recipe): string {
  const stage = stages.find((each) => kindOf(each).needsCalibration(each))!;
  return kindOf(stage).describe(stage);
}
