// What `npm run demo` and `npm test` need before they start: packages, the addon, the compiled library. Each step is
// left out where what it makes is newer than what it is made from, so a second run goes straight on.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const tests = process.argv.includes('--tests');

function run(what, command, args) {
  console.error(`espalier: ${what}`);
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (status === 0) return;
  console.error(`espalier: ${what} failed${error === undefined ? '' : `: ${error.message}`}`);
  process.exit(status ?? 1);
}

const time = (path) => statSync(join(root, path), { throwIfNoEntry: false })?.mtimeMs ?? 0;

/** The latest change of any file under a folder. */
function latest(folder) {
  let newest = 0;
  for (const entry of readdirSync(join(root, folder), { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) newest = Math.max(newest, statSync(join(entry.parentPath, entry.name)).mtimeMs);
  }
  return newest;
}

// npm writes this file last.
if (time('node_modules/.package-lock.json') < time('package-lock.json')) {
  run('installing packages (npm ci)', 'npm', ['ci', '--no-audit', '--no-fund']);
}

const nativeChange = Math.max(latest('native'), time('CMakeLists.txt'), time('binding.gyp'), time('scripts/build-native.mjs'));
const stamp = tests ? 'build/native-tests.stamp' : 'build/native.stamp';
if (!existsSync(join(root, 'build/Release/espalier.node')) || time(stamp) < nativeChange) {
  run('building the native addon', process.execPath, ['scripts/build-native.mjs', ...(tests ? ['--tests'] : [])]);
}

if (time('build/ts.tsbuildinfo') < Math.max(latest('lib'), time('tsconfig.json'), time('tsconfig.build.json')) || !existsSync(join(root, 'dist/index.js'))) {
  run('compiling the library', process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json']);
}
