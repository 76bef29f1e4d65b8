/** The command line: what each command gives. */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { demoModel, espalier, root, start } from './support/cli.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';

/** Token ids of the demo model's vocabulary, always the same. */
function idFile(folder: string, count: number): string {
  const ids = Uint16Array.from({ length: count }, (_, i) => 5 + ((i * 2654435761) % 4000));
  const path = join(folder, 'ids.u16');
  writeFileSync(path, ids);
  return path;
}

async function json(args: string[], input?: string) {
  const { code, stdout, stderr } = await espalier([...args, '--json'], input === undefined ? {} : { input });
  expect({ code, stderr }).toEqual({ code: 0, stderr: expect.not.stringContaining('{') });
  return JSON.parse(stdout);
}

describe('inspect', () => {
  test('gives layers, sparsity and bytes', async () => {
    const found = await json(['inspect', demoModel]);
    expect(found).toMatchObject({ family: 'mixtral', sparsity: 0, storage: 'dense', path: demoModel });
    expect(found.layers).toHaveLength(4);
    expect(found.layers[0]).toMatchObject({ layer: 0, experts: 8, topK: 2, size: 8 * 3 * 192 * 384, zeros: 0 });
    const { stdout } = await espalier(['inspect', demoModel]);
    expect(stdout).toMatch(/^family +mixtral$/m);
    expect(stdout).toMatch(/^ +3 +8 +2 +1\.77 M +0 +0\.00 % +3\.20 +3\.20$/m);
  });

  test('--quiet leaves stderr empty, and pipes get no colours', async () => {
    const { stdout, stderr } = await espalier(['inspect', demoModel, '--quiet']);
    expect(stderr).toBe('');
    expect(stdout).not.toContain('\u001b');
  });
});

describe('prune', () => {
  test('prunes, tells what it did, and says so when there is nothing left to do', async () => {
    const folder = temporaryFolder();
    const output = join(folder, 'out');
    const line = ['prune', demoModel, '--output', output, '--pattern', '2:4', '--samples', '4'];
    line.push('--sequence-length', '64', '--calibration', idFile(folder, 256));
    const result = await json(line);
    expect(result).toMatchObject({ output, alreadyFinished: false, sparsity: 0.5, warnings: [], resumedLayers: 0 });
    const weights = { stage: 'weights', method: 'moe-pruner', routerWeighting: true, budget: { keep: 2, group: 4 } };
    expect(result.recipe.stages).toMatchObject([weights]);
    expect(result.layers.map((layer: { sparsity: number }) => layer.sparsity)).toEqual([0.5, 0.5, 0.5, 0.5]);
    expect((await json(['inspect', output])).sparsity).toBe(0.5);
    const again = await json([...line, '--resume']);
    expect(again).toMatchObject({ alreadyFinished: true, resumedLayers: 4 });
    expect(readdirSync(folder).sort()).toEqual(['ids.u16', 'out']);
  });

  test('a flag overrides its field of the recipe', async () => {
    const folder = temporaryFolder();
    const recipe = join(folder, 'recipe.json');
    writeFileSync(recipe, JSON.stringify({ method: 'magnitude', pattern: '1:4', save: 'sparse', seed: 7 }));
    const line = ['prune', demoModel, '--output', join(folder, 'out'), '--recipe', recipe, '--dry-run'];
    expect((await json(line)).recipe).toMatchObject({
      stages: [{ budget: { keep: 1, group: 4 } }],
      save: 'sparse',
      seed: 7,
    });
    const flags = ['--sparsity', '0.25', '--save', 'dense', '--seed', '0'];
    const { recipe: used } = await json([...line, ...flags]);
    const stages = [{ method: 'magnitude', budget: { sparsity: 0.25 } }];
    expect(used).toMatchObject({ stages, save: 'dense', seed: 0 });
  });

  test('--recover and --quantize add their stages', async () => {
    const folder = temporaryFolder();
    const line = ['prune', demoModel, '--output', join(folder, 'out'), '--dry-run'];
    line.push('--calibration', idFile(folder, 1024), '--samples', '8', '--sequence-length', '128');
    const stagesOf = async (...flags: string[]) => (await json([...line, ...flags])).recipe.stages;
    expect(await stagesOf('--recover')).toMatchObject([{ stage: 'weights' }, { stage: 'recover', epochs: 16 }]);
    expect(await stagesOf('--recover', '3', '--quantize', 'int8')).toMatchObject([
      { stage: 'weights' },
      { stage: 'recover', epochs: 3 },
      { stage: 'quantize', values: 'int8' },
    ]);
  });

  test('a dry run foresees the run and writes nothing', async () => {
    const folder = temporaryFolder();
    const calibration = idFile(folder, 1024);
    const output = join(folder, 'deep', 'out');
    const line = ['prune', demoModel, '--output', output, '--method', 'wanda', '--sparsity', '0.3'];
    line.push('--calibration', calibration, '--samples', '8', '--sequence-length', '128');
    const foreseen = await json([...line, '--dry-run']);
    expect(foreseen).toMatchObject({ dryRun: true, output, matrices: 96, calibration: { sequences: 8, tokens: 1024 } });
    expect(readdirSync(folder)).toEqual(['ids.u16']);
    const done = await json(line);
    expect({ zeros: foreseen.zeros, weights: foreseen.weights }).toEqual({ zeros: done.zeros, weights: done.size });
  });

  test('the model writes its own calibration text', async () => {
    const output = join(temporaryFolder(), 'out');
    const line = ['prune', demoModel, '--output', output, '--calibration', 'self', '--samples', '4'];
    await json([...line, '--sequence-length', '32']);
    const manifest = JSON.parse(readFileSync(join(output, 'espalier.json'), 'utf8'));
    expect(manifest.calibration).toMatchObject({ tokens: 128, source: 'written by the model itself' });
  });
});

describe('on a terminal', () => {
  test('there is a bar, unless --quiet, and line wrapping is restored', ({ skip }) => {
    const line = `${process.execPath} bin/espalier.js inspect ${demoModel}`;
    // Runs a command on a terminal of its own.
    const onTerminal = (command: string) =>
      spawnSync('script', ['-qec', command, '/dev/null'], { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
    const { error, stdout } = onTerminal(line);
    if (error !== undefined) {
      console.log(`skipped: ${error.message}`);
      skip(error.message);
    }
    expect(stdout.toString()).toContain('layer 4 of 4');
    expect(stdout.toString().lastIndexOf('\u001b[?7h')).toBeGreaterThan(stdout.toString().lastIndexOf('\u001b[?7l'));
    expect(onTerminal(`${line} --quiet`).stdout.toString()).not.toContain('\u001b');
  });
});

describe('perplexity', () => {
  test('measures windows of token ids', async () => {
    const data = idFile(temporaryFolder(), 1000);
    const line = ['perplexity', demoModel, '--data', data, '--sequence-length', '128'];
    const result = await json([...line, '--max-windows', '3']);
    expect(result).toMatchObject({ windows: 3, tokens: 3 * 127, sequenceLength: 128, model: demoModel });
    expect(result.perplexity).toBeCloseTo(Math.exp(result.meanNll), 6);
    expect(result.perplexity).toBeGreaterThan(100);
    expect((await json(line)).windows).toBe(7);
    const { stdout } = await espalier([...line, '--max-windows', '3']);
    expect(stdout).toContain(`perplexity ${result.perplexity.toFixed(4)} (3 windows of 128 tokens`);
  });
});

describe('generate', () => {
  test('prints the continuation only, the same from stdin and as JSON', async () => {
    const line = ['generate', demoModel, '--max-tokens', '12', '--prompt'];
    const { code, stdout } = await espalier([...line, 'The people']);
    expect(code).toBe(0);
    const whole = await json([...line, 'The people']);
    expect(whole).toMatchObject({ promptTokens: 2, tokens: 12, finishReason: 'length' });
    expect(whole.ids).toHaveLength(12);
    expect(whole.tokensPerSecond).toBeGreaterThan(0);
    expect(stdout).toBe(`${whole.text}\n`);
    expect(await json([...line, '-'], 'The people\n')).toMatchObject({ ids: whole.ids, promptTokens: 2 });
    expect((await json([...line, '-'], 'The people\n\n')).promptTokens).toBeGreaterThan(2);
  });

  test('samples reproducibly and stops at a stop text', async () => {
    const line = ['generate', demoModel, '--prompt', 'The people', '--max-tokens', '24', '--ignore-eos'];
    const first = await json([...line, '--temperature', '1.5', '--seed', '3']);
    expect((await json([...line, '--temperature', '1.5', '--seed', '3', '--threads', '1'])).ids).toEqual(first.ids);
    expect((await json([...line, '--temperature', '1.5', '--seed', '4'])).ids).not.toEqual(first.ids);
    const greedy = await json(line);
    const word = greedy.text.trim().split(' ')[3];
    const stopped = await json([...line, '--stop', word, '--stop', 'never there']);
    expect(stopped.finishReason).toBe('stop');
    expect(stopped.text).toBe(greedy.text.slice(0, greedy.text.indexOf(word)));
  });

  test('a prompt on stdin that is not UTF-8 is refused', async () => {
    const input = Uint8Array.of(0x61, 0xff, 0x62);
    const { code, stderr } = await espalier(['generate', demoModel, '--prompt', '-'], { input });
    expect(code).toBe(2);
    expect(stderr).toContain('--prompt');
  });

  test('a reader that goes away ends it quietly', async () => {
    const run = start(['generate', demoModel, '--prompt', 'The', '--max-tokens', '2000', '--ignore-eos']);
    run.child.stdout.once('data', () => run.child.stdout.destroy());
    const { code, stderr } = await run.finished;
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  });
});

describe('convert', () => {
  test('goes both ways without loss', async () => {
    const folder = temporaryFolder();
    const [pruned, sparse, dense] = ['pruned', 'sparse', 'dense'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    expect((await espalier(['prune', demoModel, '--method', 'magnitude', '--output', pruned])).code).toBe(0);
    const packed = await json(['convert', pruned, '--to', 'sparse', '--output', sparse]);
    expect(packed.outputBytes).toBeLessThan(packed.sourceBytes * 0.75);
    await json(['convert', sparse, '--to', 'dense', '--output', dense]);
    const weights = (path: string) =>
      readdirSync(path)
        .filter((name) => name.endsWith('.safetensors'))
        .sort();
    expect(weights(dense)).toEqual(weights(pruned));
    for (const name of weights(pruned)) {
      expect(readFileSync(join(dense, name)).equals(readFileSync(join(pruned, name))), name).toBe(true);
    }
  });
});

describe('doctor', () => {
  test('names what it found', async () => {
    const { ok, checks } = await json(['doctor']);
    expect(ok).toBe(true);
    const names = checks.map(({ name }: { name: string }) => name);
    for (const name of [
      'espalier',
      'Node',
      'platform',
      'addon',
      'processor',
      'kernels',
      'threads',
      'CUDA',
      'memory',
      'disk',
    ]) {
      expect(names).toContain(name);
    }
  });

  test('says why other kernels than the best are used', async () => {
    const { code, stdout } = await espalier(['doctor', '--json'], { env: { ESPALIER_ISA: 'scalar' } });
    expect(code).toBe(0);
    const kernels = JSON.parse(stdout).checks.find(({ name }: { name: string }) => name === 'kernels');
    expect(kernels.value).toMatch(/^scalar/);
    if (kernels.value !== 'scalar')
      expect(kernels).toMatchObject({ status: 'note', advice: expect.stringContaining('ESPALIER_ISA') });
  });
});

/** The package without its compiled addon. */
function withoutAddon(): string {
  const folder = temporaryFolder();
  for (const name of ['bin', 'dist', 'scripts', 'package.json']) {
    cpSync(join(root, name), join(folder, name), { recursive: true });
  }
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
  return folder;
}

describe('a bug of ours', () => {
  test.each([
    ['thrown', "throw new TypeError('boom')"],
    [
      'thrown later',
      "setTimeout(() => { throw new TypeError('boom') }); setInterval(() => {}, 1000); return { checks: [] }",
    ],
  ])('%s is status 1, called a bug, and shown with its stack', async (_, body) => {
    const folder = withoutAddon();
    writeFileSync(join(folder, 'dist', 'report', 'doctor.js'), `export function examine() { ${body} }\n`);
    const { code, stderr, stdout } = await espalier(['doctor', '--json', '--quiet'], {
      program: join(folder, 'bin', 'espalier.js'),
    });
    expect(code).toBe(1);
    expect(stderr).toContain('this is a bug in espalier');
    expect(stderr).toMatch(/TypeError: boom\n +at .*doctor\.js/);
    expect(stdout).toContain('"INTERNAL"');
  });
});

describe('where the addon is missing', () => {
  test('help works, doctor tells what to do, and models are refused with status 3', async () => {
    const folder = withoutAddon();
    const program = join(folder, 'bin', 'espalier.js');
    expect((await espalier(['--help'], { program })).code).toBe(0);
    const doctor = await espalier(['doctor'], { program });
    expect(doctor.code).toBe(3);
    expect(doctor.stdout).toMatch(/FAIL +addon/);
    expect(doctor.stdout).toContain('espalier build');
    const { code, stdout } = await espalier(['inspect', demoModel, '--json'], { program });
    expect({ code, error: JSON.parse(stdout).error.code }).toEqual({ code: 3, error: 'NATIVE' });
  });

  test('build names what it lacks', async () => {
    const folder = withoutAddon();
    const tools = join(folder, 'tools');
    mkdirSync(tools);
    const env = { PATH: tools, CXX: join(folder, 'no-compiler') };
    const { code, stderr } = await espalier(['build'], { program: join(folder, 'bin', 'espalier.js'), env });
    expect(code).toBe(3);
    expect(stderr).toContain('g++');
    expect(existsSync(join(folder, 'build'))).toBe(false);
  });
});
