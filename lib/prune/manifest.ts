/** `espalier.json` beside a pruned checkpoint: what was done to it. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { manifestName } from '../checkpoint/file-names.ts';
import { readJsonFile } from '../checkpoint/json-file.ts';
import type { Recipe } from './recipe.ts';
import type { LayerReport, SparsityCount } from './report.ts';

export { manifestName };

export interface Manifest extends SparsityCount {
  /** Of this file. */
  readonly format: 2;
  /** Of Espalier. */
  readonly version: string;
  /** Identifies model, recipe, calibration tokens and version. */
  readonly run: string;
  readonly recipe: Recipe;
  /** null where the method needs none. */
  readonly calibration: { readonly sha256: string; readonly tokens: number; readonly source: string } | null;
  readonly layers: readonly LayerReport[];
}

/** The manifest of a folder; undefined where there is none or it is no file of ours. */
export function readManifest(dir: string): Manifest | undefined {
  const path = join(dir, manifestName);
  if (!existsSync(path)) return undefined;
  const { value } = readJsonFile(path, 'RESUME', 2 ** 28);
  return value.format === 2 ? (value as unknown as Manifest) : undefined;
}
