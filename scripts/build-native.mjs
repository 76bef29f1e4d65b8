// Builds the native addon into build/Release: with cmake-js where cmake is present, else with node-gyp (CPU only).
// Both are incremental; what is current is not compiled again. With --tests, cmake builds the native tests too.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);

const tests = process.argv.includes('--tests');
const has = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;

function fail(message) {
  console.error(message);
  process.exit(3);
}

function run(script, args) {
  const { status } = spawnSync(process.execPath, [script, ...args], { cwd: root, stdio: 'inherit' });
  if (status !== 0) fail(`the native build failed (${script.split('/').pop()} ended with ${status})`);
}

/** The file behind a package's command. */
function bin(name) {
  const manifest = require.resolve(`${name}/package.json`);
  return join(dirname(manifest), require(manifest).bin[name]);
}

const compiler = process.env.CXX ?? (has('g++') ? 'g++' : 'c++');
if (!has(compiler)) fail('no C++ compiler found: install g++ 12 or newer (Debian: apt-get install g++), then run this again');

if (has('cmake')) {
  // `compile` would keep the options of an earlier configuration.
  for (const step of ['configure', 'build']) {
    run(bin('cmake-js'), [step, '--log-level', 'warn', `--CDESPALIER_TESTS=${tests ? 'ON' : 'OFF'}`]);
  }
} else {
  console.error('cmake not found: building with node-gyp instead, which makes the addon but not the native tests');
  if (!has('make')) fail('node-gyp needs make (Debian: apt-get install make), or install cmake');
  // Debian's and other distributions' Node keep their headers beside the binary; without them node-gyp downloads some.
  const prefix = dirname(dirname(process.execPath));
  const headers = spawnSync('test', ['-f', join(prefix, 'include/node/node_api.h')]).status === 0;
  run(bin('node-gyp'), ['rebuild', ...(headers ? [`--nodedir=${prefix}`] : [])]);
}
