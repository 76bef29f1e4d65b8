/** The compiled library, for tests that need it in another process. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** Path of dist/index.js, compiled from lib/ as it is now; quick where nothing changed. */
export function compiledLibrary(): string {
  const compiler = `${root}/node_modules/typescript/bin/tsc`;
  spawnSync(process.execPath, [compiler, '-p', 'tsconfig.build.json'], { cwd: root, stdio: 'ignore' });
  const entry = `${root}/dist/index.js`;
  if (!existsSync(entry)) throw new Error(`${entry} could not be compiled; npm run build:ts says why`);
  return entry;
}
