// The package as npm packs it, installed in an empty directory: what is in it, and that it works without a clone.
import { spawn } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DemoReport } from '../lib/report/demo.ts';
import type { DoctorReport } from '../lib/report/doctor.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), 'espalier-package-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** npm tells its scripts about the package they belong to, which must not reach the npm that runs here. */
const environment = Object.fromEntries(
  Object.entries(process.env).filter(
    ([name]) => !/^(npm_(package|lifecycle|command|config_local)|INIT_CWD|NODE_ENV)/.test(name),
  ),
);

interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Where the build goes through ccache, it knows again in the package what it compiled in the tree. */
const cache = process.env.CCACHE_DIR === undefined ? {} : { CCACHE_BASEDIR: scratch };

function run(command: string, args: string[], cwd: string, env: Record<string, string> = {}): Promise<Finished> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd,
      env: { ...environment, ...cache, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let [stdout, stderr] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (part: string) => {
      stdout += part;
    });
    child.stderr.setEncoding('utf8').on('data', (part: string) => {
      stderr += part;
    });
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, stdout, stderr }));
  });
}

async function succeed(...call: Parameters<typeof run>): Promise<string> {
  const { code, stdout, stderr } = await run(...call);
  if (code !== 0) throw new Error(`${call[0]} ${call[1].join(' ')} ended with ${code}:\n${stdout}\n${stderr}`);
  return stdout;
}

interface Packed {
  readonly filename: string;
  readonly size: number;
  readonly files: readonly { readonly path: string }[];
}

async function pack(folder: string): Promise<Packed> {
  const stdout = await succeed('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', scratch], folder);
  return (JSON.parse(stdout) as [Packed])[0];
}

/** An empty directory with the tarball installed as a dependency; no script of any package runs. */
async function install(name: string, tarball: string): Promise<string> {
  const folder = join(scratch, name);
  mkdirSync(folder);
  writeFileSync(join(folder, 'package.json'), '{ "private": true, "type": "module" }\n');
  const options = ['--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund'];
  await succeed('npm', ['install', ...options, join(scratch, tarball)], folder);
  return folder;
}

const cli = 'node_modules/.bin/espalier';
const installed = (folder: string) => join(folder, 'node_modules/espalier');
const example = `
import { Model } from 'espalier';
import { SparseMatrix } from 'espalier/kernels';
const matrix = SparseMatrix.pack(Float32Array.of(1, 0, 0, 4), 2, 2);
const y: Float32Array = matrix.multiply(Float32Array.of(1, 1));
const model = await Model.load('node_modules/espalier/models/demo');
let ids = 0;
for await (const piece of model.generate('The', { maxTokens: 3, ignoreEos: true })) ids += piece.ids.length;
model.dispose();
console.log([...y, ids].join(' '));
`;

describe('the packed package', { timeout: 600_000 }, () => {
  let packed: Packed;
  let folder: string;
  beforeAll(async () => {
    packed = await pack(root);
    folder = await install('compiled', packed.filename);
  }, 120_000);

  test('holds what runs and what a build needs, and nothing else', () => {
    const paths = packed.files.map(({ path }) => path).filter((path) => !path.startsWith('prebuilds/'));
    const needed = [
      'README.md',
      'LICENSE',
      'bin/espalier.js',
      'dist/index.js',
      'dist/index.d.ts',
      'dist/cli/main.js',
      'lib/index.ts',
      'models/demo/README.md',
      'models/demo/model.safetensors.index.json',
      'recipes/best-2of4.yaml',
      'native/sources.gypi',
      'native/addon.map',
      'native/binding/addon.cc',
      'scripts/build-native.mjs',
      'CMakeLists.txt',
      'binding.gyp',
    ];
    expect(paths).toEqual(expect.arrayContaining(needed));
    const allowed =
      /^(bin|dist|lib|models\/demo|native|recipes|scripts)\/|^(CMakeLists\.txt|LICENSE|README\.md|binding\.gyp|package\.json)$/;
    expect(paths.filter((path) => !allowed.test(path))).toEqual([]);
    const unwanted = /(^|\/)\.|\.stamp$|^native\/(test|fuzz)\/|golden|\.test\./;
    expect(paths.filter((path) => unwanted.test(path))).toEqual([]);
    expect(paths.filter((path) => path.startsWith('scripts/'))).toEqual([
      'scripts/build-native.mjs',
      'scripts/toolchain.mjs',
    ]);
    // Most of it is the model.
    expect(packed.size).toBeLessThan(18e6);
  });

  test('has no script that npm would run at an install', async () => {
    const stdout = await succeed('npm', ['pkg', 'get', 'scripts', 'gypfile'], installed(folder));
    const { scripts, gypfile } = JSON.parse(stdout) as { scripts: Record<string, string>; gypfile: boolean };
    expect(Object.keys(scripts).filter((name) => /install|prepare|prepublish/.test(name))).toEqual([]);
    expect(gypfile).toBe(false);
  });

  test('without an addon helps, imports, and says how to get one', async () => {
    // Prebuilds of this tree, if there are some, are not what is asked about here.
    rmSync(join(installed(folder), 'prebuilds'), { recursive: true, force: true });
    expect(await succeed(cli, ['--help'], folder)).toContain('prune');
    await succeed('node', ['-e', "import('espalier')"], folder);
    const { code, stdout } = await run(cli, ['doctor', '--json'], folder);
    expect(code).toBe(3);
    const { ok, checks } = JSON.parse(stdout) as DoctorReport;
    expect(ok).toBe(false);
    expect(checks).toContainEqual(
      expect.objectContaining({ name: 'addon', status: 'fail', advice: expect.stringContaining('npx espalier build') }),
    );
    const refused = await run(cli, ['generate', 'node_modules/espalier/models/demo', '--prompt', 'a'], folder);
    expect(refused.stderr).toContain('npx espalier build');
  });

  test('compiles its addon where it is installed, and then runs', async () => {
    await succeed(cli, ['build'], folder);
    const report = JSON.parse(await succeed(cli, ['doctor', '--json'], folder)) as DoctorReport;
    expect(report.ok).toBe(true);
    expect(report.checks).toContainEqual(
      expect.objectContaining({ name: 'addon', value: expect.stringContaining('compiled here') }),
    );
    writeFileSync(join(folder, 'example.js'), example.replace(': Float32Array', ''));
    expect(await succeed('node', ['example.js'], folder)).toBe('1 4 3\n');
  });

  test('with a prebuilt addon needs no compiler', async () => {
    const staged = join(scratch, 'staged');
    const addon = join(installed(folder), 'build/Release/espalier.node');
    mkdirSync(join(staged, 'prebuilds', `${process.platform}-${process.arch}`), { recursive: true });
    for (const { path } of packed.files) {
      if (!path.startsWith('prebuilds/')) cpSync(join(root, path), join(staged, path));
    }
    const report = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
    const libc = report.header.glibcVersionRuntime === undefined ? 'musl' : 'glibc';
    cpSync(addon, join(staged, 'prebuilds', `${process.platform}-${process.arch}`, `espalier.${libc}.node`));
    const ready = await install('prebuilt', await renamed(await pack(staged)));

    const noCompiler = { PREBUILDS_ONLY: '1', CXX: '/nonexistent' };
    const doctor = JSON.parse(await succeed(cli, ['doctor', '--json'], ready, noCompiler)) as DoctorReport;
    expect(doctor.checks).toContainEqual(
      expect.objectContaining({ name: 'addon', value: expect.stringContaining('prebuilt') }),
    );
    writeFileSync(join(ready, 'example.js'), example.replace(': Float32Array', ''));
    expect(await succeed('node', ['example.js'], ready, noCompiler)).toBe('1 4 3\n');
    const built = await run(cli, ['build'], ready, noCompiler);
    expect(built).toMatchObject({ code: 3, stderr: expect.stringContaining('apt-get install g++') });

    // No calibration text comes with the package: the model writes its own.
    const demo = JSON.parse(await succeed(cli, ['demo', '--json'], ready, noCompiler)) as DemoReport;
    expect(demo.corpus.kind).toBe('self');
    const [dense, ...pruned] = demo.rows;
    expect(pruned).toHaveLength(4);
    for (const row of pruned) expect(row.perplexity).toBeGreaterThan(dense!.perplexity);
  });

  test('has types that a program in strict TypeScript compiles against', async () => {
    writeFileSync(join(folder, 'example.ts'), example);
    const options = ['--noEmit', '--strict', '--target', 'es2023', '--module', 'nodenext', '--types', 'node'];
    const typeRoots = ['--typeRoots', join(root, 'node_modules/@types')];
    const compiler = join(root, 'node_modules/typescript/bin/tsc');
    await succeed('node', [compiler, ...options, ...typeRoots, 'example.ts'], folder);
  });
});

/** npm would take a second tarball of the same name for the one it knows. */
async function renamed({ filename }: Packed): Promise<string> {
  const name = `prebuilt-${filename}`;
  cpSync(join(scratch, filename), join(scratch, name));
  return name;
}
