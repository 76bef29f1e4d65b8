/** What tells a run from another one, so that only the same one is resumed. */
import { createHash } from 'node:crypto';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { native } from '../native.ts';
import { version } from '../version.ts';
import type { Calibration } from './calibrate.ts';
import type { Recipe } from './recipe.ts';
import { kindOf } from './stages/index.ts';

const SAMPLE_BYTES = 4096;
const SAMPLES = 16;

/** Where a tensor is sampled to identify it: reading all weights would take as long as pruning some models. */
function samplePoints(begin: number, end: number): number[] {
  const size = end - begin;
  if (size <= SAMPLE_BYTES * SAMPLES)
    return Array.from({ length: Math.ceil(size / SAMPLE_BYTES) }, (_, i) => begin + i * SAMPLE_BYTES);
  return Array.from({ length: SAMPLES }, (_, i) => begin + Math.floor(((size - SAMPLE_BYTES) * i) / (SAMPLES - 1)));
}

/** Everything that decides the bytes of the result, hashed. */
export function runIdentity(
  checkpoint: Checkpoint,
  recipe: Recipe,
  sequences: Calibration | undefined,
  gpu: number | undefined,
): string {
  const hash = createHash('sha256');
  const { samples: _samples, sequenceLength: _length, seed, ...decisive } = recipe;
  if (recipe.stages.some((stage) => kindOf(stage).dependsOnSeed?.(stage))) hash.update(String(seed));
  hash.update(
    JSON.stringify({ version, recipe: decisive, calibration: sequences?.hash ?? null, config: checkpoint.config }),
  );
  const dependsOnIsa = recipe.stages.some((stage) => kindOf(stage).dependsOnIsa(stage));
  hash.update(dependsOnIsa ? native().features().isa : '');
  if (dependsOnIsa && gpu !== undefined) hash.update('cuda');
  for (const file of checkpoint.files) {
    hash.update(JSON.stringify([file.size, file.tensors]));
    for (const { begin, end } of file.tensors) {
      for (const at of samplePoints(begin, end)) hash.update(file.read(at, Math.min(end, at + SAMPLE_BYTES)));
    }
  }
  return hash.digest('hex');
}
