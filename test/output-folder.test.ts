import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { convertCheckpoint, OutputFolder, writeFileAtomic } from '../lib/checkpoint/index.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';

const demo = new URL('../models/demo', import.meta.url).pathname;

function codeOf(call: () => unknown): string | undefined {
  try {
    call();
  } catch (error) {
    return (error as { code?: string }).code;
  }
  return undefined;
}

/** A folder with an old checkpoint at `out`. */
function withOldOutput(): { folder: string; output: string } {
  const folder = temporaryFolder();
  const output = join(folder, 'out');
  mkdirSync(output);
  writeFileSync(join(output, 'config.json'), 'old');
  return { folder, output };
}

describe('an output folder', () => {
  test('gets its name only when finished, and leaves nothing beside it', async () => {
    const folder = temporaryFolder();
    const output = join(folder, 'deep', 'out');
    const run = OutputFolder.open({ output });
    expect(run.resumed).toBe(false);
    await writeFileAtomic(join(run.partial, 'config.json'), 'new');
    expect(existsSync(output)).toBe(false);
    await run.finish();
    expect(readFileSync(join(output, 'config.json'), 'utf8')).toBe('new');
    expect(readdirSync(join(folder, 'deep'))).toEqual(['out']);
  });

  test('keeps the old checkpoint whole until the new one is', async () => {
    const { folder, output } = withOldOutput();
    expect(codeOf(() => OutputFolder.open({ output }))).toBe('OUTPUT');
    const run = OutputFolder.open({ output, overwrite: true });
    await writeFileAtomic(join(run.partial, 'config.json'), 'new');
    expect(readFileSync(join(output, 'config.json'), 'utf8')).toBe('old');
    await run.finish();
    expect(readFileSync(join(output, 'config.json'), 'utf8')).toBe('new');
    expect(readdirSync(folder)).toEqual(['out']);
  });

  test('may exist when it is empty', async () => {
    const output = join(temporaryFolder(), 'out');
    mkdirSync(output);
    const run = OutputFolder.open({ output });
    await writeFileAtomic(join(run.partial, 'config.json'), 'new');
    await run.finish();
    expect(readdirSync(output)).toEqual(['config.json']);
  });

  test('is refused where it would lose something', () => {
    const folder = temporaryFolder();
    const input = join(folder, 'model');
    mkdirSync(join(input, 'sub'), { recursive: true });
    writeFileSync(join(input, 'config.json'), '{}');
    symlinkSync(input, join(folder, 'link'));
    writeFileSync(join(folder, 'file'), '');
    mkdirSync(join(folder, 'documents'));
    writeFileSync(join(folder, 'documents', 'letter.txt'), 'dear');
    for (const output of [
      input,
      `${input}/`,
      join(folder, 'link'),
      join(input, 'out'),
      join(folder, 'link', 'out'),
      join(input, 'sub', '..', 'new'),
      folder,
      '/',
    ]) {
      for (const overwrite of [false, true]) {
        expect(
          codeOf(() => OutputFolder.open({ output, input, overwrite })),
          output,
        ).toBe('OUTPUT');
      }
    }
    const partial = `${join(folder, 'x')}.partial`;
    mkdirSync(partial);
    expect(codeOf(() => OutputFolder.open({ output: join(folder, 'x'), input: partial, overwrite: true }))).toBe(
      'OUTPUT',
    );
    expect(codeOf(() => OutputFolder.open({ output: join(folder, 'file'), overwrite: true }))).toBe('OUTPUT');
    expect(codeOf(() => OutputFolder.open({ output: join(folder, 'documents'), overwrite: true }))).toBe('OUTPUT');
    expect(readFileSync(join(folder, 'documents', 'letter.txt'), 'utf8')).toBe('dear');
    expect(readdirSync(input)).toEqual(['config.json', 'sub']);
    expect(readdirSync(folder).filter((name) => name.endsWith('.lock'))).toEqual([]);
  });

  test('may have a name that the input starts with', () => {
    const folder = temporaryFolder();
    mkdirSync(join(folder, 'model-pruned'));
    const run = OutputFolder.open({ output: join(folder, 'model'), input: join(folder, 'model-pruned') });
    run.discard();
    expect(readdirSync(folder)).toEqual(['model-pruned']);
  });
});

describe('an unfinished run', () => {
  function interrupted(): { folder: string; output: string } {
    const folder = temporaryFolder();
    const output = join(folder, 'out');
    const run = OutputFolder.open({ output });
    writeFileSync(join(run.partial, 'layer-0'), 'done');
    writeFileSync(join(run.partial, 'layer-1.tmp-123-00ff00ff00ff'), 'half');
    run.release();
    return { folder, output };
  }

  test('is refused with what to pass', () => {
    const { output } = interrupted();
    expect(() => OutputFolder.open({ output })).toThrow(/--resume.*--overwrite/);
    expect(codeOf(() => OutputFolder.open({ output }))).toBe('OUTPUT');
  });

  test('goes on with resume, without its half-written files', () => {
    const { output } = interrupted();
    const run = OutputFolder.open({ output, resume: true });
    expect(run.resumed).toBe(true);
    expect(readdirSync(run.partial)).toEqual(['layer-0']);
    run.release();
  });

  test('is discarded with overwrite', () => {
    const { output } = interrupted();
    const run = OutputFolder.open({ output, overwrite: true });
    expect(run.resumed).toBe(false);
    expect(readdirSync(run.partial)).toEqual([]);
    run.discard();
  });

  test('starts fresh with resume where there is nothing', () => {
    const run = OutputFolder.open({ output: join(temporaryFolder(), 'out'), resume: true });
    expect(run.resumed).toBe(false);
    run.discard();
  });

  for (const [what, hasNew, expected] of [
    ['before the new one had its name', false, 'old'],
    ['after the new one had its name', true, 'new'],
  ] as const) {
    test(`a swap cut short ${what} is put right by the next run`, () => {
      const { folder, output } = withOldOutput();
      execFileSync('mv', [output, `${output}.espalier-old`]);
      if (hasNew) {
        mkdirSync(output);
        writeFileSync(join(output, 'config.json'), 'new');
      }
      const run = OutputFolder.open({ output, overwrite: true });
      expect(readFileSync(join(output, 'config.json'), 'utf8')).toBe(expected);
      run.discard();
      expect(readdirSync(folder)).toEqual(['out']);
    });
  }
});

describe('the lock', () => {
  test('keeps a second run out and is free again after release', () => {
    const output = join(temporaryFolder(), 'out');
    const run = OutputFolder.open({ output });
    expect(codeOf(() => OutputFolder.open({ output }))).toBe('LOCKED');
    expect(codeOf(() => OutputFolder.open({ output, overwrite: true }))).toBe('LOCKED');
    expect(codeOf(() => OutputFolder.open({ output, resume: true }))).toBe('LOCKED');
    run.release();
    OutputFolder.open({ output, resume: true }).discard();
  });

  const owner = (change: object, output: string) => {
    const run = OutputFolder.open({ output });
    const mine = JSON.parse(readFileSync(`${output}.lock`, 'utf8'));
    run.discard();
    return JSON.stringify({ ...mine, ...change });
  };

  test('names a live process of another kind of run', async () => {
    const output = join(temporaryFolder(), 'out');
    const child = spawn('sleep', ['60']);
    onTestFinished(() => void child.kill('SIGKILL'));
    await new Promise((resolve) => child.once('spawn', resolve));
    const stat = readFileSync(`/proc/${child.pid}/stat`, 'utf8');
    const started = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
    writeFileSync(`${output}.lock`, owner({ pid: child.pid, started, token: 'other' }, output));
    expect(() => OutputFolder.open({ output })).toThrow(`process ${child.pid}`);
  });

  const stale: [what: string, change: () => object][] = [
    ['of a process that ended', () => ({ pid: spawnSync('true').pid, token: 'other' })],
    ['of a process whose id was given away', () => ({ pid: process.pid, started: '1', token: 'other' })],
    ['of another boot', () => ({ boot: 'another', token: 'other' })],
  ];
  for (const [what, change] of stale) {
    test(`${what} is recovered`, () => {
      const folder = temporaryFolder();
      const output = join(folder, 'out');
      writeFileSync(`${output}.lock`, owner(change(), output));
      const run = OutputFolder.open({ output });
      expect(codeOf(() => OutputFolder.open({ output }))).toBe('LOCKED');
      run.discard();
      expect(readdirSync(folder)).toEqual([]);
    });
  }

  for (const [what, content] of [
    ['of another host', (output: string) => owner({ host: 'another', token: 'other' }, output)],
    ['that is garbage', () => 'garbage'],
    ['that is empty', () => ''],
  ] as const) {
    test(`${what} is respected, with the file to delete named`, () => {
      const output = join(temporaryFolder(), 'out');
      writeFileSync(`${output}.lock`, content(output));
      expect(codeOf(() => OutputFolder.open({ output }))).toBe('LOCKED');
      expect(() => OutputFolder.open({ output })).toThrow(`${output}.lock`);
      expect(existsSync(`${output}.partial`)).toBe(false);
    });
  }

  test('that was taken away stops the run from finishing', async () => {
    const output = join(temporaryFolder(), 'out');
    const run = OutputFolder.open({ output });
    writeFileSync(`${output}.lock`, 'another run');
    await expect(run.finish()).rejects.toMatchObject({ code: 'LOCKED' });
    expect(existsSync(output)).toBe(false);
  });

  test('lets one of many processes in', async () => {
    const output = join(temporaryFolder(), 'out');
    writeFileSync(`${output}.lock`, owner({ pid: spawnSync('true').pid, token: 'other' }, output));
    const script = `
      const { LockFile } = await import(process.argv[1]);
      try { LockFile.acquire(process.argv[2]); console.log('in'); } catch (error) { console.log(error.code); }
      process.stdin.resume().on('end', () => {});
    `;
    const outDir = temporaryFolder();
    const repository = new URL('..', import.meta.url).pathname;
    const project = {
      extends: join(repository, 'tsconfig.json'),
      compilerOptions: {
        noEmit: false,
        outDir,
        rootDir: join(repository, 'lib'),
        typeRoots: [join(repository, 'node_modules/@types')],
      },
      files: [join(repository, 'lib/checkpoint/lock-file.ts')],
      include: [],
    };
    writeFileSync(join(outDir, 'tsconfig.json'), JSON.stringify(project));
    writeFileSync(join(outDir, 'package.json'), '{"type":"module"}');
    execFileSync(join(repository, 'node_modules/.bin/tsc'), ['-p', outDir], { stdio: 'pipe' });
    const module = join(outDir, 'checkpoint', 'lock-file.js');
    const children = Array.from({ length: 8 }, () =>
      spawn(process.execPath, ['--input-type=module', '-e', script, module, `${output}.lock`], { stdio: 'pipe' }),
    );
    const said = await Promise.all(
      children.map(
        (child) => new Promise<string>((resolve) => child.stdout.once('data', (data) => resolve(String(data).trim()))),
      ),
    );
    for (const child of children) child.stdin.end();
    expect(said.sort()).toEqual([...Array(7).fill('LOCKED'), 'in']);
  });
});

describe('a full disk', () => {
  /** A small file system, or the reason why there is none. */
  function smallDisk(bytes: number): string | undefined {
    const folder = temporaryFolder();
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${bytes}`, 'tmpfs', folder], { encoding: 'utf8' });
    if (mounted.status !== 0) {
      console.log(
        `skipped: a small file system cannot be mounted here (${mounted.stderr?.trim() || mounted.error?.message})`,
      );
      return undefined;
    }
    onTestFinished(() => void spawnSync('umount', [folder]));
    return folder;
  }

  test('is seen before anything is written, with both numbers', async ({ skip }) => {
    const disk = smallDisk(8 * 2 ** 20) ?? skip();
    const conversion = convertCheckpoint({ from: demo, to: 'sparse', output: join(disk, 'out') });
    await expect(conversion).rejects.toMatchObject({ code: 'NO_SPACE', exitCode: 3 });
    await expect(conversion).rejects.toThrow(/\d+ bytes are needed and \d+ bytes are available/);
    expect(readdirSync(disk)).toEqual([]);
  });

  test('that fills up while a file is written leaves no temporary file', async ({ skip }) => {
    const disk = smallDisk(2 ** 20) ?? skip();
    writeFileSync(join(disk, 'kept'), 'x');
    const path = join(disk, 'big');
    await expect(writeFileAtomic(path, new Uint8Array(2 ** 21))).rejects.toMatchObject({
      code: 'NO_SPACE',
      file: path,
    });
    expect(readdirSync(disk)).toEqual(['kept']);
  });
});

test('a place that may not be written to gives IO and its name', () => {
  const folder = temporaryFolder();
  const isRoot = process.geteuid!() === 0;
  if (isRoot) {
    execFileSync('chmod', ['755', folder]);
    process.seteuid!(65534);
  } else execFileSync('chmod', ['555', folder]);
  try {
    const output = join(folder, 'out');
    expect(codeOf(() => OutputFolder.open({ output }))).toBe('IO');
    expect(() => OutputFolder.open({ output })).toThrow(basename(output));
  } finally {
    if (isRoot) process.seteuid!(0);
    else execFileSync('chmod', ['755', folder]);
  }
});
