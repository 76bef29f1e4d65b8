/** The command line: what it accepts, what it refuses and how. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { expertMethodNames } from '../lib/prune/experts/methods.ts';
import { methodNames } from '../lib/prune/methods.ts';
import { version } from '../lib/version.ts';
import { demoModel, espalier } from './support/cli.ts';
import { checkpointFolder, temporaryFolder } from './support/raw-safetensors.ts';

describe('help', () => {
  test('starts quickly and loads no heavy module', async () => {
    const coverage = mkdtempSync(join(tmpdir(), 'espalier-coverage-'));
    try {
      const { code, stdout } = await espalier(['--help'], { env: { NODE_V8_COVERAGE: coverage } });
      expect(code).toBe(0);
      for (const name of [
        'demo',
        'inspect',
        'prune',
        'perplexity',
        'generate',
        'serve',
        'convert',
        'bench',
        'doctor',
        'build',
      ]) {
        expect(stdout).toMatch(new RegExp(`^ {2}${name}`, 'm'));
      }
      const loaded = readdirSync(coverage).flatMap((name) => {
        const { result } = JSON.parse(readFileSync(join(coverage, name), 'utf8')) as { result: { url: string }[] };
        return result.map(({ url }) => url).filter((url) => url.startsWith('file:'));
      });
      expect(loaded.some((url) => url.endsWith('dist/cli/main.js'))).toBe(true);
      expect(
        loaded.filter((url) => /zod|tokenizers|jinja|hyparquet|cli-table3|cli-progress|native\.js/.test(url)),
      ).toEqual([]);
    } finally {
      rmSync(coverage, { recursive: true, force: true });
    }
    const times: number[] = [];
    for (let i = 0; i < 3; i++) {
      const begin = performance.now();
      await espalier(['--help']);
      times.push(performance.now() - begin);
    }
    expect(Math.min(...times)).toBeLessThan(1000);
  });

  test('tells the version', async () => {
    expect(await espalier(['--version'])).toEqual({ code: 0, stdout: `${version}\n`, stderr: '' });
  });
});

/** Lines that are refused before anything is opened, and what the message must name. */
const refused: [args: string, ...says: string[]][] = [
  ['', 'no command', 'prune', 'generate'],
  ['train MODEL', "'train'", 'commands:', 'prune'],
  ['serve', "'model'"],
  ['serve MODEL --port 70000', '--port', '0 to 65535'],
  ['bench', 'no command', 'kernels', 'model'],
  ['bench cpu', "'cpu'", 'kernels', 'model'],
  ['bench model', "'models'"],
  ['bench model MODEL --tokens 3', '--tokens', '4 to 1048576'],
  ['bench model MODEL --batch 1,1', '--batch', '"1" twice'],
  ['bench kernels MODEL', 'too many arguments'],
  ['bench kernels --gigabytes 0', '--gigabytes', 'above 0'],
  ['bench kernels --sparsity 1', '--sparsity', 'above 0 and below 1'],
  ['bench kernels --batch 1,0', '--batch', '"0"', '1 to 4096'],
  ['bench kernels --batch 1,4097', '--batch', '"4097"'],
  ['bench kernels --sizes 4096', '--sizes', '"4096"', 'ROWSxCOLS'],
  ['bench kernels --sizes 16x33', '--sizes', '"16x33"', 'even'],
  ['bench kernels --sizes 0x64', '--sizes', '"0x64"'],
  ['bench kernels --formats int8', '--formats', '"int8"', 'bitmap', 'N:M', 'bf16'],
  ['bench kernels --formats bitmap_f32', '--formats', '"bitmap_f32"', 'dense also f32'],
  ['pruen MODEL --output OUT', "'pruen'", 'Did you mean prune?'],
  ['prune MODEL --output OUT --memory 0', '--memory', 'above 0'],
  ['inspect', "'model'"],
  ['inspect MODEL other', 'too many arguments'],
  ['inspect MODEL --sparsity 0.5', '--sparsity'],
  ['inspect MODEL --device cuda', '--device', 'cpu'],
  ['generate MODEL text --device cuda:0,0', '--device', 'cuda:0,0', 'cuda:0,1'],
  ['prune MODEL --output OUT --device cuda:0,1', '--device', 'cuda:0,1', 'cuda:1'],
  ['inspect MODEL --weights int2', '--weights', 'bf16', 'int8', 'int4'],
  ['inspect MODEL --threads 2x', '--threads', '2x', '0 to 1024'],
  ['inspect MODEL --threads -1', '--threads', '-1', '0 to 1024'],
  ['inspect MODEL --threads 1.5', '--threads', '1.5'],
  ['inspect MODEL --threads NaN', '--threads', 'NaN'],
  ['inspect MODEL --threads 1025', '--threads', '1025'],
  ['inspect MODEL --seed 1e3', '--seed', '1e3'],
  ['inspect MODEL --seed 9007199254740993', '--seed'],
  ['prune MODEL', '--output'],
  ['prune MODEL --output', '--output'],
  ['prune MODEL --output --json', '--output', './--json'],
  ['prune MODEL --output OUT --method obd', '--method', 'obd', ...methodNames],
  ['prune MODEL --output OUT --experts-method best', '--experts-method', 'best', ...expertMethodNames],
  ['prune MODEL --output OUT --experts-method reap', '--calibration', 'self'],
  ['prune MODEL --output OUT --experts-ratio 1', '--experts-ratio', '0 to below 1'],
  ['prune MODEL --output OUT --experts-keep 0', '--experts-keep', '1 to 65536'],
  ['prune MODEL --output OUT --experts-ratio 0.5 --experts-keep 2', '--experts-ratio', '--experts-keep'],
  ['prune MODEL --output OUT --experts-method naee --experts-scope global', '--experts-scope', 'uniform'],
  ['prune MODEL --output OUT --sparsitty 0.5', '--sparsitty', '(Did you mean --sparsity?)'],
  ['prune MODEL --output OUT --sparsity half', '--sparsity', 'half', 'above 0 and below 1'],
  ['prune MODEL --output OUT --sparsity 0', '--sparsity', 'above 0 and below 1'],
  ['prune MODEL --output OUT --sparsity 1', '--sparsity', 'above 0 and below 1'],
  ['prune MODEL --output OUT --sparsity NaN', '--sparsity', 'NaN'],
  ['prune MODEL --output OUT --sparsity Infinity', '--sparsity', 'Infinity'],
  ['prune MODEL --output OUT --sparsity 0x1', '--sparsity', '0x1'],
  ['prune MODEL --output OUT --pattern 4:2', '--pattern', '4:2', 'N:M'],
  ['prune MODEL --output OUT --pattern 2-4', '--pattern', '2-4', 'N:M'],
  ['prune MODEL --output OUT --sparsity 0.5 --pattern 2:4', '--sparsity', '--pattern'],
  ['prune MODEL --output OUT --samples 0', '--samples', '1 to 1000000'],
  ['prune MODEL --output OUT --sequence-length 1', '--sequence-length', '2 to 1048576'],
  ['prune MODEL --output OUT --save packed', '--save', 'dense, sparse'],
  ['prune MODEL --output OUT', '--calibration', 'self'],
  ['prune MODEL --output OUT --method magnitude --router-weighting', '--router-weighting', 'magnitude'],
  ['prune MODEL --output OUT --no-router-weighting --calibration self', '--router-weighting', 'moe-pruner'],
  ['prune MODEL --output OUT --method magnitude --pattern 3:7', '--pattern', '3:7', '192'],
  ['prune MODEL --output OUT --method magnitude --pattern 3:7 --dry-run', '--pattern', '3:7', '192'],
  ['perplexity MODEL', '--data'],
  ['perplexity MODEL --data f --sequence-length x', '--sequence-length', 'x'],
  ['perplexity MODEL --data f --max-windows 0', '--max-windows', 'at least 1'],
  ['generate MODEL', '--prompt'],
  ['generate MODEL --prompt a --max-tokens 0', '--max-tokens', '1 to 2147483647'],
  ['generate MODEL --prompt a --temperature hot', '--temperature', 'hot', '100'],
  ['generate MODEL --prompt a --temperature -1', '--temperature', '-1', '100'],
  ['generate MODEL --prompt a --top-k -3', '--top-k', '-3'],
  ['generate MODEL --prompt a --top-p 0', '--top-p', 'above 0 and at most 1'],
  ['generate MODEL --prompt a --min-p 1', '--min-p', 'below 1'],
  ['generate MODEL --prompt a --repetition-penalty 0', '--repetition-penalty', 'above 0'],
  ['generate MODEL --prompt a --stop ', '--stop'],
  ['prune MODEL --method magnitude --weights int8 --output OUT', '--weights', 'packed copy'],
  ['prune MODEL --method magnitude --packed OUT --output OUT', '--packed', 'a folder of its own'],
  ['convert MODEL --output OUT', '--to'],
  ['convert MODEL --to smaller --output OUT', '--to', 'dense, sparse, packed'],
  ['convert MODEL --to sparse --weights int8 --output OUT', '--weights', '--to packed'],
  ['convert MODEL --to dense --output OUT', '--to', 'dense already'],
];

describe('a line that cannot be meant', () => {
  test.each(refused)('%s', async (line, ...says) => {
    const output = join(temporaryFolder(), 'out');
    const words = line === '' ? [] : line.split(' ');
    const args = words.map((word) => (word === 'MODEL' ? demoModel : word === 'OUT' ? output : word));
    const { code, stdout, stderr } = await espalier(args);
    expect({ code, stderr }).toEqual({ code: 2, stderr: expect.stringMatching(/^error: .*\[USAGE\]\n$/m) });
    // Where an option swallowed --json, the document is wanted all the same.
    if (!args.includes('--json')) expect(stdout).toBe('');
    for (const text of says) expect(stderr).toContain(text);
    expect(existsSync(output)).toBe(false);
  });

  test('is one JSON document with --json', async () => {
    const { code, stdout, stderr } = await espalier(['inspect', demoModel, '--json', '--threads', '2x']);
    expect(code).toBe(2);
    expect(JSON.parse(stdout)).toEqual({
      error: { code: 'USAGE', message: expect.stringContaining('2x'), file: null, tensor: null, field: '--threads' },
    });
    expect(stderr).toContain('--threads');
  });
});

describe('input that is not there or no good', () => {
  const cases: [args: string[], code: string, says: string][] = [
    [['inspect', '/no/such/model'], 'NOT_A_FILE', '/no/such/model'],
    [['perplexity', demoModel, '--data', '/no/such/text'], 'DATA', '/no/such/text'],
    [['prune', demoModel, '--output', 'OUT', '--calibration', '/no/such/text'], 'DATA', '/no/such/text'],
    [['prune', demoModel, '--output', 'OUT', '--recipe', '/no/such/recipe'], 'RECIPE', '/no/such/recipe'],
    [['generate', '/no/such/model', '--prompt', 'a'], 'NOT_A_FILE', '/no/such/model'],
    [['convert', '/no/such/model', '--to', 'sparse', '--output', 'OUT'], 'NOT_A_FILE', '/no/such/model'],
  ];
  test.each(cases)('%j is %s', async (args, code, says) => {
    const output = join(temporaryFolder(), 'out');
    const run = await espalier([...args.map((word) => (word === 'OUT' ? output : word)), '--json']);
    expect(run.code).toBe(2);
    expect(JSON.parse(run.stdout).error.code).toBe(code);
    expect(run.stderr).toContain(says);
    expect(existsSync(output)).toBe(false);
  });

  test('a model without weights is named', async () => {
    const folder = checkpointFolder({ 'config.json': { model_type: 'mixtral' } });
    const { code, stderr } = await espalier(['inspect', folder]);
    expect(code).toBe(2);
    expect(stderr).toContain(folder);
  });

  test('a recipe with an unknown field is refused, naming those there are', async () => {
    const recipe = join(temporaryFolder(), 'recipe.json');
    writeFileSync(recipe, '{"sparsness": 0.5}');
    const { code, stderr } = await espalier(['prune', demoModel, '--output', `${recipe}.out`, '--recipe', recipe]);
    expect(code).toBe(2);
    for (const text of [recipe, 'sparsness', 'sparsity', '[RECIPE]']) expect(stderr).toContain(text);
  });
});

describe('an output that would lose something', () => {
  test('the input itself, a folder inside it, a folder around it', async () => {
    const folder = temporaryFolder();
    const model = join(folder, 'around', 'model');
    expect((await espalier(['convert', demoModel, '--to', 'sparse', '--output', model])).code).toBe(0);
    const before = readdirSync(model);
    for (const output of [model, join(model, 'inside'), join(folder, 'around')]) {
      for (const command of [
        ['convert', model, '--to', 'dense'],
        ['prune', model, '--method', 'magnitude'],
        ['prune', model, '--method', 'magnitude', '--dry-run'],
      ]) {
        const { code, stdout } = await espalier([...command, '--output', output, '--overwrite', '--json']);
        expect({ code, error: JSON.parse(stdout).error.code }).toEqual({ code: 2, error: 'OUTPUT' });
      }
    }
    expect(readdirSync(model)).toEqual(before);
    expect(readdirSync(join(folder, 'around'))).toEqual(['model']);
  });

  test('a folder that holds something, unless it is a checkpoint and --overwrite is given', async () => {
    const folder = temporaryFolder();
    const output = join(folder, 'out');
    mkdirSync(output);
    writeFileSync(join(output, 'precious.txt'), 'mine');
    const line = ['prune', demoModel, '--method', 'magnitude', '--output', output];
    for (const more of [[], ['--overwrite'], ['--dry-run']]) {
      const { code, stderr } = await espalier([...line, ...more]);
      expect(code).toBe(2);
      expect(stderr).toContain('[OUTPUT]');
    }
    expect(readdirSync(folder)).toEqual(['out']);
    expect(readFileSync(join(output, 'precious.txt'), 'utf8')).toBe('mine');
    rmSync(join(output, 'precious.txt'));
    expect((await espalier(line)).code).toBe(0);
    expect((await espalier(line)).code).toBe(2);
    expect((await espalier([...line, '--overwrite'])).code).toBe(0);
  });
});
