// What `npm run demo` and `npm test` need before they start: packages, the addon, the compiled library. Each step is
// left out where what it makes is newer than what it is made from, so a second run goes straight on.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { noNativeTests } from './toolchain.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const tests = process.argv.includes('--tests') && noNativeTests() === undefined;

function run(what, command, args) {
  console.error(`espalier: ${what}`);
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (status === 0) return;
  console.error(`espalier: ${what} failed${error === undefined ? '' : `: ${error.message}`}`);
  process.exit(status ?? 1);
}

const exists = (path) => existsSync(join(root, path));
const time = (path) => statSync(join(root, path), { throwIfNoEntry: false })?.mtimeMs ?? 0;

/** The latest change of any of these files, and of any file under these folders. */
function latest(...paths) {
  let newest = 0;
  for (const path of paths) {
    newest = Math.max(newest, time(path));
    if (!statSync(join(root, path)).isDirectory()) continue;
    for (const entry of readdirSync(join(root, path), { recursive: true })) {
      newest = Math.max(newest, time(join(path, entry)));
    }
  }
  return newest;
}

// npm writes this file last.
if (time('node_modules/.package-lock.json') < latest('package-lock.json')) {
  run('installing packages (npm ci)', 'npm', ['ci', '--no-audit', '--no-fund']);
}

const nativeSources = latest('native', 'CMakeLists.txt', 'binding.gyp', 'scripts/build-native.mjs');
const stamp = tests ? 'build/native-tests.stamp' : 'build/native.stamp';
if (!exists('build/Release/espalier.node') || time(stamp) < nativeSources) {
  run('building the native addon', process.execPath, ['scripts/build-native.mjs', ...(tests ? ['--tests'] : [])]);
}

const librarySources = latest('lib', 'tsconfig.json', 'tsconfig.build.json');
if (!exists('dist/index.js') || time('build/library.stamp') < librarySources) {
  const started = new Date();
  run('compiling the library', process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json']);
  mkdirSync(join(root, 'build'), { recursive: true });
  writeFileSync(join(root, 'build/library.stamp'), '');
  utimesSync(join(root, 'build/library.stamp'), started, started);
}
