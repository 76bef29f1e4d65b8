/** Pruning runs that were stopped: by kill -9 at any moment, by a signal, by damage to what they left. */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { type PruneOptions, type PruneResult, prune } from '../lib/index.ts';
import { hashesOf } from './support/checkpoints.ts';
import { compiledLibrary } from './support/dist.ts';
import { demoGoldens, demoModel } from './support/models.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { freshSeed, randomFrom } from './support/steps.ts';

const recipe = {
  model: demoModel,
  calibration: join(demoGoldens, 'golden-calibration.u16'),
  method: 'sparsegpt',
  samples: 12,
  sequenceLength: 128,
} as const;

/** So little calibration text leaves every run with this to say. */
const starved = expect.stringContaining('experts saw fewer calibration tokens than their matrices have inputs');

const child = fileURLToPath(new URL('support/prune-child.mjs', import.meta.url));

interface Run {
  readonly process: ChildProcess;
  /** When pruning begins, after Node and the library have started. */
  readonly started: Promise<void>;
  /** What it printed last; undefined when it was killed. */
  readonly result: Promise<{ resumedLayers: number; alreadyFinished: boolean } | undefined>;
}

function start(dist: string, options: PruneOptions): Run {
  const process_ = spawn(process.execPath, [child, dist, JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let text = '';
  let begin = () => {};
  const started = new Promise<void>((resolve) => {
    begin = resolve;
  });
  process_.stdout!.on('data', (piece) => {
    text += piece;
    begin();
  });
  const result = new Promise<Awaited<Run['result']>>((resolve, reject) => {
    process_.on('close', (code, signal) => {
      if (signal === 'SIGKILL') resolve(undefined);
      else if (code === 0) resolve(JSON.parse(text.trim().split('\n').at(-1)!));
      else reject(new Error(`the child ended with ${code}: ${text}`));
    });
  });
  return { process: process_, started, result };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Prunes until `layers` layers are done, then stops by signal. The partial folder stays beside `output`. */
async function stopped(output: string, layers: number, options: Partial<PruneOptions> = {}): Promise<string> {
  const control = new AbortController();
  let done = 0;
  const run = prune({
    ...recipe,
    ...options,
    output,
    signal: control.signal,
    onProgress: (progress) => {
      if (progress.type === 'layer' && ++done === layers) control.abort();
    },
  });
  await expect(run).rejects.toMatchObject({ code: 'ABORTED' });
  return `${output}.partial`;
}

let reference: Promise<Record<string, string>> | undefined;

/** Files of an uninterrupted run of `recipe`. */
function uninterrupted(): Promise<Record<string, string>> {
  reference ??= (async () => {
    const output = join(temporaryFolder(), 'whole');
    await prune({ ...recipe, output });
    return hashesOf(output);
  })();
  return reference;
}

/** Resumes and expects the files of a run that nothing happened to. */
async function resumed(output: string, options: Partial<PruneOptions> = {}): Promise<PruneResult> {
  const result = await prune({ ...recipe, output, resume: true, ...options });
  expect(hashesOf(output)).toEqual(await uninterrupted());
  expect(readdirSync(dirname(output))).toEqual([basename(output)]);
  return result;
}

describe('kill -9', () => {
  test('at random moments leaves what a resumed run turns into the same bytes', { timeout: 300_000 }, async () => {
    const wanted = await uninterrupted();
    const dist = compiledLibrary();
    const random = randomFrom(freshSeed());
    const folder = temporaryFolder();
    const timing = start(dist, { ...recipe, output: join(folder, 'timed') });
    await timing.started;
    const begin = performance.now();
    expect(await timing.result).toEqual({ resumedLayers: 0, alreadyFinished: false });
    const whole = performance.now() - begin;
    expect(hashesOf(join(folder, 'timed'))).toEqual(wanted);

    let kills = 0;
    let takenUp = 0;
    for (let round = 0; kills < 12; round++) {
      const output = join(folder, `killed-${round}`);
      for (;;) {
        const run = start(dist, { ...recipe, output, resume: true });
        await run.started;
        const timer = sleep(random() * whole).then(() => run.process.kill('SIGKILL'));
        const result = await run.result;
        await timer;
        if (result !== undefined) {
          takenUp += result.resumedLayers > 0 ? 1 : 0;
          break;
        }
        kills++;
        // Nothing that looks like a whole checkpoint stands there before its time.
        if (existsSync(output)) expect(hashesOf(output)).toMatchObject(wanted);
      }
      expect(hashesOf(output), `after ${kills} kills`).toEqual(wanted);
    }
    console.log(`${kills} kills; ${takenUp} runs ended that had taken up layers of one before`);
    expect(takenUp).toBeGreaterThan(0);
    const left = readdirSync(folder).filter((name) => /partial|lock|tmp|old/.test(name));
    expect(left).toEqual([]);
  });

  test('between the final rename and the end is cleaned up by the next run', async () => {
    const output = join(temporaryFolder(), 'out');
    await prune({ ...recipe, output });
    mkdirSync(join(output, '.espalier-run'));
    writeFileSync(join(output, '.espalier-run', 'state.json'), '{}');
    cpSync(output, `${output}.espalier-old`, { recursive: true });
    const result = await resumed(output);
    expect(result).toMatchObject({ alreadyFinished: true, resumedLayers: 4 });
  });
});

describe('resume', () => {
  test('starts fresh where there is nothing', async () => {
    const result = await resumed(join(temporaryFolder(), 'out'));
    expect(result).toMatchObject({ resumedLayers: 0, alreadyFinished: false, warnings: [starved] });
  });

  test('says that a finished run is finished, and does nothing', async () => {
    const output = join(temporaryFolder(), 'out');
    const first = await prune({ ...recipe, output });
    const second = await resumed(output);
    expect(second).toEqual({ ...first, warnings: [], alreadyFinished: true, resumedLayers: 4 });
    await expect(prune({ ...recipe, output })).rejects.toMatchObject({ code: 'OUTPUT' });
    await expect(prune({ ...recipe, output, resume: true, sparsity: 0.6 })).rejects.toMatchObject({ code: 'OUTPUT' });
    expect(hashesOf(output)).toEqual(await uninterrupted());
  });

  test('takes up after each layer, with another number of threads', async () => {
    for (const layers of [1, 2, 3, 4]) {
      const output = join(temporaryFolder(), 'out');
      await stopped(output, layers);
      expect(existsSync(output)).toBe(false);
      const result = await resumed(output, { threads: 3 });
      expect(result.resumedLayers).toBe(layers);
      expect(result.alreadyFinished).toBe(false);
    }
  });

  test('an unfinished run is neither continued nor thrown away unasked', async () => {
    const output = join(temporaryFolder(), 'out');
    const partial = await stopped(output, 2);
    const before = hashesOf(partial);
    await expect(prune({ ...recipe, output })).rejects.toMatchObject({
      code: 'OUTPUT',
      message: expect.stringMatching(/--resume.*--overwrite/),
    });
    expect(hashesOf(partial)).toEqual(before);
    const result = await prune({ ...recipe, output, overwrite: true });
    expect(result.resumedLayers).toBe(0);
    expect(hashesOf(output)).toEqual(await uninterrupted());
  });

  test('a run stopped before its first layer is done leaves nothing', async () => {
    const folder = temporaryFolder();
    const control = new AbortController();
    const run = prune({
      ...recipe,
      output: join(folder, 'out'),
      signal: control.signal,
      onProgress: ({ type }) => type === 'stage' && control.abort(),
    });
    await expect(run).rejects.toMatchObject({ code: 'ABORTED' });
    expect(readdirSync(folder)).toEqual([]);
    await expect(prune({ ...recipe, output: join(folder, 'out'), signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ABORTED',
    });
    expect(readdirSync(folder)).toEqual([]);
  });

  const others: [string, Partial<PruneOptions>][] = [
    ['sparsity', { sparsity: 0.6 }],
    ['method', { method: 'wanda' }],
    ['router weighting', { routerWeighting: true }],
    ['way of saving', { save: 'sparse' }],
    ['calibration set', { samples: 11 }],
  ];
  test.each(others)('refuses the run of another %s and keeps it', async (_what, options) => {
    const output = join(temporaryFolder(), 'out');
    const partial = await stopped(output, 1);
    const before = hashesOf(partial);
    const run = prune({ ...recipe, output, resume: true, ...options });
    await expect(run).rejects.toMatchObject({ code: 'RESUME', message: expect.stringContaining('--overwrite') });
    expect(hashesOf(partial)).toEqual(before);
    expect((await resumed(output)).resumedLayers).toBe(1);
  });

  test('what a run of another recipe left behind does not get into the output', async () => {
    const output = join(temporaryFolder(), 'out');
    const partial = await stopped(output, 2, { save: 'sparse' });
    expect(readdirSync(partial)).toContain('espalier-00001-of-00005.safetensors');
    truncateSync(join(partial, '.espalier-run', 'state.json'), 100);
    expect((await resumed(output)).resumedLayers).toBe(0);
  });
});

describe('damage to an unfinished run is noticed', () => {
  const flip = (path: string, at: number) => {
    const bytes = readFileSync(path);
    const place = at < 0 ? bytes.byteLength + at : at;
    bytes[place] = bytes[place]! ^ 1;
    writeFileSync(path, bytes);
  };
  const state = '.espalier-run/state.json';
  const damages: [string, RegExp, (partial: string) => void][] = [
    ['a truncated state file', /state file is damaged/, (dir) => truncateSync(join(dir, state), 1000)],
    ['an empty state file', /state file is damaged/, (dir) => truncateSync(join(dir, state))],
    ['a flipped bit in the state file', /state file is damaged/, (dir) => flip(join(dir, state), -300)],
    ['a flipped bit in a shard', /00001-of.*damaged/, (dir) => flip(join(dir, 'model-00001-of-00005.safetensors'), -9)],
    [
      'a shard that is cut off',
      /00002-of.*damaged/,
      (dir) => truncateSync(join(dir, 'model-00002-of-00005.safetensors'), 9),
    ],
    [
      'a shard that is longer',
      /00002-of.*damaged/,
      (dir) => appendFileSync(join(dir, 'model-00002-of-00005.safetensors'), 'x'),
    ],
    [
      'a missing shard',
      /00001-of.*missing/,
      (dir) => renameSync(join(dir, 'model-00001-of-00005.safetensors'), join(dir, 'away')),
    ],
    [
      'a flipped bit in the hidden states',
      /hidden-2.*damaged/,
      (dir) => flip(join(dir, '.espalier-run/hidden-2.f32'), 5),
    ],
  ];
  test.each(damages)('%s', async (_what, said, damage) => {
    const output = join(temporaryFolder(), 'out');
    const partial = await stopped(output, 2);
    damage(partial);
    const result = await resumed(output);
    expect(result.resumedLayers).toBe(0);
    expect(result.warnings).toEqual([expect.stringMatching(said), starved]);
  });

  test('any flipped bit of the state file', async () => {
    const output = join(temporaryFolder(), 'out');
    const partial = await stopped(output, 1);
    const random = randomFrom(freshSeed());
    const { RunState } = await import('../lib/prune/run-state.ts');
    const path = join(partial, state);
    const sound = readFileSync(path);
    const { run } = JSON.parse(sound.toString()).state as { run: string };
    for (let i = 0; i < 200; i++) {
      const bytes = Buffer.from(sound);
      bytes[Math.floor(random() * bytes.byteLength)]! ^= 1 << Math.floor(random() * 8);
      writeFileSync(path, bytes);
      expect(await new RunState(partial, run).resume()).toMatch(/damaged/);
    }
    // A flipped bit can leave the same value behind: 1e-7 is 1E-7.
    writeFileSync(path, sound.toString().replace(':', ': '));
    expect(await new RunState(partial, run).resume()).toMatch(/damaged/);
    writeFileSync(path, sound);
    expect((await resumed(output)).resumedLayers).toBe(1);
  });
});
