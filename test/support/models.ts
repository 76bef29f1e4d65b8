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

const sharedModels = path('../../../shared/models');

/** Folder of a model that only some machines have; undefined, and said so, where it is not there. */
export function sharedModel(name: string): string | undefined {
  const folder = join(sharedModels, name);
  if (existsSync(folder)) return folder;
  console.log(`not tested: ${name}, because ${sharedModels} is not on this machine`);
  return undefined;
}
