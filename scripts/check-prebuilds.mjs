// What the prebuilt addons ask of a system: prints the newest glibc and libstdc++ symbols each needs, and fails where
// that is more than the oldest system we name, or where a prebuild depends on a library that systems do not have.
import { spawnSync } from 'node:child_process';
import { readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Debian 12 and Ubuntu 22.04 have these. */
const oldest = { GLIBC: '2.35', GLIBCXX: '3.4.30', CXXABI: '1.3.13' };
const libraries = ['libc.so.6', 'libm.so.6', 'libstdc++.so.6', 'libgcc_s.so.1', 'ld-linux-x86-64.so.2'];

const prebuilds = join(dirname(dirname(fileURLToPath(import.meta.url))), 'prebuilds');
const files = readdirSync(prebuilds, { recursive: true }).filter((file) => file.endsWith('.node'));
if (files.length === 0) throw new Error(`no addon in ${prebuilds}: run npm run dist:native`);

function readelf(option, file) {
  const { status, stdout, error } = spawnSync('readelf', ['--wide', option, file], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`readelf failed (Debian: apt-get install binutils)`, { cause: error });
  return stdout;
}

const compare = (a, b) => a.localeCompare(b, 'en', { numeric: true });

for (const file of files) {
  const path = join(prebuilds, file);
  const versions = readelf('--version-info', path);
  const needs = [...readelf('--dynamic', path).matchAll(/NEEDED.*\[(.*)\]/g)].map((match) => match[1]);
  const newest = Object.keys(oldest).map((name) => {
    const found = [...versions.matchAll(new RegExp(`\\b${name}_([0-9.]+)`, 'g'))].map((match) => match[1]);
    return [name, found.sort(compare).at(-1) ?? '0'];
  });
  console.log(
    `${file}: ${statSync(path).size} bytes, ${newest.map(([name, version]) => `${name} ${version}`).join(', ')}`,
  );
  for (const [name, version] of newest) {
    if (compare(version, oldest[name]) <= 0) continue;
    console.error(`${file} needs ${name} ${version}; the oldest system that we support has ${oldest[name]}`);
    process.exitCode = 1;
  }
  for (const library of needs.filter((name) => !libraries.includes(name))) {
    console.error(`${file} needs ${library}, which systems may lack`);
    process.exitCode = 1;
  }
}
