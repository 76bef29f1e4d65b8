/** The models that tests run on. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));

/** The embedded model, and its references; it is the same as `tiny-mixtral`. */
export const demoModel = path('../../models/demo');
export const demoGoldens = path('../golden/demo');

/** Small checkpoints of each family with what transformers computes from them. */
export const familyFolder = path('../golden/families');
export const families = readdirSync(familyFolder).sort();

/** Models too large for the repository, which only some machines have beside it. */
export const sharedModels = path('../../../shared/models');

/** Folder of such a model; undefined where it is not there. */
export function sharedModel(name: string): string | undefined {
  const folder = join(sharedModels, name);
  return existsSync(folder) ? folder : undefined;
}
