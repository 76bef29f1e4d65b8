/** The packed copy of a pruned checkpoint: what the stages rounded, in the codes and scales that they chose. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { OutputFolder } from '../checkpoint/output.ts';
import { EspalierError } from '../errors.ts';
import { packCheckpoint } from '../runtime/pack.ts';
import { type ResolvedWeights, resolveWeights, type Weights } from '../runtime/weights.ts';
import { readManifest } from './manifest.ts';
import type { Recipe } from './recipe.ts';

export interface PackedCopyOptions {
  readonly model: string;
  readonly output: string;
  readonly packed?: string | undefined;
  readonly weights?: Weights | undefined;
  readonly overwrite?: boolean | undefined;
  readonly resume?: boolean | undefined;
  readonly threads?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * What the matrices of the packed copy become: the experts what the recipe's last rounding made them, unless it has none.
 * @throws USAGE where `wish` would round them again
 */
export function packedWeights({ stages }: Recipe, wish: Weights | undefined): ResolvedWeights {
  const given = resolveWeights(wish);
  const rounded = stages
    .flatMap((stage) => ('values' in stage && stage.values !== 'float' ? [stage.values] : []))
    .at(-1);
  if (rounded === undefined) return given;
  const said = typeof wish === 'object' ? wish.experts : wish;
  if (said !== undefined && said !== rounded) {
    throw new EspalierError(
      'USAGE',
      `the recipe rounds the experts to ${rounded}, and a packed copy as ${said} would hold others; ` +
        `say experts=${rounded}, or nothing of the experts`,
      { field: 'weights' },
    );
  }
  return { ...given, experts: rounded };
}

/** Throws what is wrong with the wish for a packed copy, before anything is done. */
export function checkPackedCopy(options: PackedCopyOptions, recipe: Recipe): void {
  const { model, output, packed, weights, overwrite, resume } = options;
  if (packed === undefined) {
    if (weights === undefined) return;
    throw new EspalierError('USAGE', 'it says what a packed copy holds; ask for one with packed, or leave it out', {
      field: 'weights',
    });
  }
  packedWeights(recipe, weights);
  if (resolve(packed) === resolve(output)) {
    throw new EspalierError('USAGE', `${packed} is the output itself; the packed copy needs a folder of its own`, {
      field: 'packed',
    });
  }
  for (const input of [model, output]) {
    // Of a run that is resumed the copy may be there already.
    OutputFolder.check({ output: packed, input, overwrite: overwrite || resume, resumable: false }, 0);
  }
}

/** Packs the finished output, unless that was done before. Nothing where no copy is asked for. */
export async function writePackedCopy(options: PackedCopyOptions, recipe: Recipe): Promise<void> {
  const { output, packed, weights, overwrite, resume, threads, signal } = options;
  if (packed === undefined) return;
  if (resume && existsSync(packed) && readManifest(packed)?.run === readManifest(output)?.run) return;
  await packCheckpoint({
    from: output,
    output: packed,
    weights: packedWeights(recipe, weights),
    overwrite,
    threads,
    signal,
  });
}
