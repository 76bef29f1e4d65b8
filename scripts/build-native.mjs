// Builds the native addon into build/Release: with cmake-js where CMake is present, else with node-gyp (CPU only). Both
// are incremental; what is current is not compiled again. With --tests, CMake builds the native tests too, where their
// headers are. `espalier build` runs this in an installed package, setup.mjs in a clone.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, utimesSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compiler, has, hasCMake, noNativeTests } from './toolchain.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);
const started = new Date();

function fail(message) {
  console.error(message);
  process.exit(3);
}

/** Runs a package's command. */
function attempt(name, args) {
  const manifest = require.resolve(`${name}/package.json`);
  const { bin } = require(manifest);
  const script = join(dirname(manifest), typeof bin === 'string' ? bin : bin[name]);
  return spawnSync(process.execPath, [script, ...args], { cwd: root, stdio: 'inherit' }).status === 0;
}

function run(name, args) {
  if (!attempt(name, args)) fail(`the native build failed: ${name} ${args[0]} says why above`);
}

/** setup.mjs compares its time with those of the sources, so it is that of the start of the build. */
function stamp(name) {
  const path = join(root, 'build', name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, '');
  utimesSync(path, started, started);
}

function buildWithCMake(tests) {
  const options = ['--log-level', 'warn', `--CDESPALIER_TESTS=${tests ? 'ON' : 'OFF'}`];
  // What an earlier configuration left (another generator, another place) can stand in the way; then start afresh.
  if (!attempt('cmake-js', ['configure', ...options])) run('cmake-js', ['reconfigure', ...options]);
  run('cmake-js', ['build', ...options, '--parallel', String(availableParallelism())]);
}

function buildWithNodeGyp() {
  console.error(
    'no cmake, or neither make nor ninja: building with node-gyp, which makes the addon without native tests',
  );
  for (const tool of ['make', 'python3']) {
    if (!has(tool)) fail(`node-gyp needs ${tool} (Debian: apt-get install ${tool}); or install cmake and make`);
  }
  // Distributions and the archives of nodejs.org keep the headers beside the binary; elsewhere node-gyp downloads them.
  const prefix = dirname(dirname(process.execPath));
  const headers = existsSync(join(prefix, 'include/node/node_api.h')) ? [`--nodedir=${prefix}`] : [];
  run('node-gyp', ['configure', ...headers]);
  run('node-gyp', ['build', ...headers, '--jobs', String(availableParallelism())]);
}

if (!has(compiler())) {
  fail('no C++ compiler found: install g++ 12 or newer (Debian: apt-get install g++), then run this again');
}
const tests = process.argv.includes('--tests') && noNativeTests() === undefined;
if (hasCMake()) buildWithCMake(tests);
else buildWithNodeGyp();
stamp('native.stamp');
if (tests) stamp('native-tests.stamp');
