#!/usr/bin/env node
// prebuildify calls its --node-gyp command as `rebuild --target=… --devdir=… --arch=… --release` and takes the addon from
// build/Release. This answers that call with CMake.
const { spawnSync } = require('node:child_process');
const { join } = require('node:path');

const arch = process.argv.find((argument) => argument.startsWith('--arch='));
const script = join(__dirname, '../node_modules/cmake-js/bin/cmake-js');
const args = ['rebuild', '--log-level', 'warn', '--config', 'Release', ...(arch === undefined ? [] : [arch])];
process.exit(spawnSync(process.execPath, [script, ...args], { stdio: 'inherit' }).status ?? 1);
