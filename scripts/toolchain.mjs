// What this machine can build with, asked by the build, the set-up and the tests.
import { spawnSync } from 'node:child_process';

/** Whether a command exists and runs. */
export const has = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;

/** The C++ compiler; it may not exist. */
export const compiler = () => process.env.CXX ?? (has('g++') ? 'g++' : 'c++');

/** Whether CMake and a tool that it can drive are here. */
export const hasCMake = () => has('cmake') && (has('ninja') || has('make'));

/** Why the native tests cannot be built here, and what to install; undefined where they can. */
export function noNativeTests() {
  if (!hasCMake()) return 'they need cmake and make or ninja (Debian: apt-get install cmake make)';
  const check = spawnSync(compiler(), ['-x', 'c++', '-fsyntax-only', '-'], {
    input: '#include <doctest/doctest.h>\n',
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  return check.status === 0 ? undefined : 'they need doctest (Debian: apt-get install doctest-dev)';
}
