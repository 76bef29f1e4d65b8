/** What pruning writes: the right zeros, nothing else touched, and the same bytes for anybody who runs it again. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { convertCheckpoint } from '../lib/checkpoint/index.ts';
import { OutputFolder } from '../lib/checkpoint/output.ts';
import { type Manifest, type MethodName, Model, prune } from '../lib/index.ts';
import { version } from '../lib/version.ts';
import { bitsOf, contentsOf, editedCheckpoint, hashesOf, tensorsOf } from './support/checkpoints.ts';
import { demoModel } from './support/models.ts';
import { isExpert, pruned, randomIds, small, zerosOf } from './support/prune.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { logitsOf } from './support/steps.ts';

describe('the same bytes', () => {
  test.each(['wanda', 'sparsegpt'] as const)('for any number of threads: %s', async (method) => {
    const hashes = [];
    for (const threads of [1, 2, 3]) hashes.push(hashesOf((await pruned({ method, threads })).output));
    expect(Object.keys(hashes[0]!).length).toBeGreaterThan(5);
    expect(hashes[1]).toEqual(hashes[0]);
    expect(hashes[2]).toEqual(hashes[0]);
  });

  test('for the same seed, others for another one', async () => {
    const text = readFileSync(join(demoModel, 'README.md'), 'utf8').repeat(20);
    const run = async (seed: number) => {
      const { output } = await pruned({ calibration: { text }, samples: 4, seed });
      return (JSON.parse(readFileSync(join(output, 'espalier.json'), 'utf8')) as Manifest).calibration!.sha256;
    };
    expect(await run(3)).toBe(await run(3));
    expect(await run(4)).not.toBe(await run(3));
  });

  test('when the model writes its own calibration text', async () => {
    const options = { calibration: 'self', samples: 3, sequenceLength: 24 } as const;
    const [a, b, c] = [
      await pruned(options),
      await pruned({ ...options, threads: 1 }),
      await pruned({ ...options, seed: 1 }),
    ];
    expect(hashesOf(b.output)).toEqual(hashesOf(a.output));
    expect(hashesOf(c.output)).not.toEqual(hashesOf(a.output));
  });

  test('never for two methods', async () => {
    const seen = new Set<string>();
    const recipes = [
      { method: 'magnitude' },
      { method: 'wanda' },
      { method: 'wanda', routerWeighting: true, sparsity: 0.25 },
      { method: 'moe-pruner' },
      { method: 'sparsegpt' },
      { method: 'sparsegpt', routerWeighting: true },
    ] as const;
    for (const recipe of recipes)
      seen.add(hashesOf((await pruned(recipe)).output)['model-00002-of-00005.safetensors']!);
    expect(seen.has(undefined as never)).toBe(false);
    expect(seen.size).toBe(recipes.length);
  });

  test('wanda with router weighting is moe-pruner', async () => {
    const a = contentsOf((await pruned({ method: 'wanda', routerWeighting: true })).output);
    expect(a).toEqual(contentsOf((await pruned({ method: 'moe-pruner' })).output));
  });
});

describe('zeros', () => {
  const budgets: { method: MethodName; sparsity?: number; pattern?: string }[] = [
    { method: 'wanda', sparsity: 0.5 },
    { method: 'wanda', sparsity: 0.37 },
    { method: 'moe-pruner', pattern: '2:4' },
    { method: 'moe-pruner', pattern: '4:8' },
    { method: 'magnitude', pattern: '1:4' },
    { method: 'sparsegpt', pattern: '3:8' },
  ];
  test.each(budgets)('are exact in every row or group of the saved experts: %o', async (recipe) => {
    const result = await pruned(recipe);
    const before = tensorsOf(demoModel);
    const after = tensorsOf(result.output);
    expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
    let experts = 0;
    let zeros = 0;
    for (const [name, tensor] of after) {
      const old = before.get(name)!;
      expect([tensor.dtype, tensor.shape]).toEqual([old.dtype, old.shape]);
      if (!isExpert(name)) {
        expect(Buffer.compare(tensor.bytes, old.bytes), name).toBe(0);
        continue;
      }
      experts++;
      const columns = tensor.shape[1]!;
      const bits = bitsOf(tensor);
      const [keep, group] = recipe.pattern?.split(':').map(Number) ?? [];
      const wanted = group === undefined ? Math.floor(recipe.sparsity! * columns) : group - keep!;
      // The source holds no zeros, so every one was made here.
      const counts = zerosOf(bits, group ?? columns);
      expect(new Set(counts), name).toEqual(new Set([wanted]));
      zeros += counts.reduce((a, b) => a + b, 0);
      if (recipe.method !== 'sparsegpt') {
        const dense = bitsOf(old);
        expect(bits.every((value, i) => value === 0 || value === dense[i])).toBe(true);
      }
    }
    expect(experts).toBe(4 * 8 * 3);
    expect(result.zeros).toBe(zeros);
    expect(result.size).toBe(experts * 192 * 384);
    expect(result.sparsity).toBeCloseTo(zeros / result.size, 12);
  });

  test('an N:M that does not divide is refused before anything is written', async () => {
    const folder = temporaryFolder();
    const tensor = 'model.layers.0.block_sparse_moe.experts.0.w1.weight';
    const short = prune({ ...small, output: join(folder, 'out'), pattern: '2:5' });
    await expect(short).rejects.toMatchObject({ code: 'USAGE', field: 'pattern', tensor });
    const stages = [{ experts: { keep: 4 } }, { weights: { method: 'magnitude', pattern: '2:5' } }] as const;
    const long = prune({ ...small, output: join(folder, 'out'), stages });
    await expect(long).rejects.toMatchObject({ code: 'USAGE', field: 'stages.1.weights.pattern', tensor });
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe('the output folder', () => {
  test('holds every other file untouched, says what was done, and the input stays as it was', async () => {
    const input = join(temporaryFolder(), 'input');
    await editedCheckpoint(demoModel, input, () => {});
    mkdirSync(join(input, 'notes'));
    writeFileSync(join(input, 'notes', 'a.txt'), 'kept');
    const before = hashesOf(input);
    const result = await pruned({ model: input, method: 'sparsegpt', sparsity: 0.6, routerWeighting: true, seed: 5 });
    expect(hashesOf(input)).toEqual(before);
    const after = hashesOf(result.output);
    for (const name of [
      'config.json',
      'tokenizer.json',
      'tokenizer_config.json',
      'generation_config.json',
      'notes/a.txt',
    ])
      expect(after[name], name).toBe(before[name]);
    const manifest = JSON.parse(readFileSync(join(result.output, 'espalier.json'), 'utf8')) as Manifest;
    expect(manifest).toMatchObject({
      format: 2,
      version,
      recipe: {
        stages: [
          {
            stage: 'weights',
            method: 'sparsegpt',
            budget: { sparsity: 0.6 },
            routerWeighting: true,
            values: 'float',
            layers: 'uniform',
            experts: 'uniform',
            shrinkage: 2,
          },
        ],
        seed: 5,
        samples: 8,
        sequenceLength: 64,
        save: 'dense',
      },
      calibration: { tokens: 512, source: 'the token ids' },
      zeros: result.zeros,
      size: result.size,
    });
    expect(manifest.layers).toEqual(result.layers);
    expect(manifest.layers.map(({ layer }) => layer)).toEqual([0, 1, 2, 3]);
    for (const { experts } of manifest.layers) {
      expect(experts.length).toBe(8);
      // Two of eight experts see each token.
      expect(experts.reduce((sum, { tokens }) => sum + tokens, 0)).toBe(2 * 512);
    }
    expect(readdirSync(join(result.output, '..'))).toEqual(['pruned']);
  });

  test('a disk without room is told before any work', async () => {
    const folder = temporaryFolder();
    const huge = { ...small, model: demoModel, output: join(folder, 'out') };
    const original = OutputFolder.prototype.requireSpace;
    const asked: number[] = [];
    OutputFolder.prototype.requireSpace = function (bytes) {
      asked.push(bytes);
      return original.call(this, 2 ** 60);
    };
    try {
      await expect(prune(huge)).rejects.toMatchObject({ code: 'NO_SPACE' });
    } finally {
      OutputFolder.prototype.requireSpace = original;
    }
    // The model, and two sets of hidden states.
    expect(asked.length).toBe(1);
    expect(asked[0]).toBeGreaterThan(18_000_000 + 2 * 512 * 192 * 4);
    expect(asked[0]).toBeLessThan(24_000_000);
    expect(readdirSync(folder)).toEqual([]);
  });

  test('saved sparse gives the bits of saved dense, and converts both ways without loss', async () => {
    const recipe = { method: 'wanda', pattern: '2:4' } as const;
    const dense = (await pruned(recipe)).output;
    const sparse = (await pruned({ ...recipe, save: 'sparse' })).output;
    expect(existsSync(join(sparse, 'espalier-00005-of-00005.safetensors'))).toBe(true);
    expect(readdirSync(sparse).filter((name) => name.startsWith('model'))).toEqual([]);
    expect(JSON.parse(readFileSync(join(sparse, 'config.json'), 'utf8')).quantization_config.quant_method).toBe(
      'espalier',
    );
    expect(contentsOf(sparse)).toEqual(contentsOf(dense));
    const ids = [...randomIds(1, 70)];
    const logits = [];
    for (const path of [dense, sparse]) {
      await using model = await Model.load(path);
      expect(model.info.formats).toEqual(['2:4 bf16']);
      logits.push(await logitsOf(model, ids));
    }
    expect(logits[1]).toEqual(logits[0]);
    const folder = temporaryFolder();
    await convertCheckpoint({ from: dense, to: 'sparse', output: join(folder, 'sparse') });
    await convertCheckpoint({ from: sparse, to: 'dense', output: join(folder, 'dense') });
    const weights = (dir: string) =>
      Object.fromEntries(Object.entries(hashesOf(dir)).filter(([name]) => name.endsWith('.safetensors')));
    expect(weights(join(folder, 'sparse'))).toEqual(weights(sparse));
    expect(weights(join(folder, 'dense'))).toEqual(weights(dense));
    expect(hashesOf(join(folder, 'dense'))['config.json']).toBe(hashesOf(demoModel)['config.json']);
  });

  test('a sparse checkpoint can be pruned again', async () => {
    const once = (await pruned({ method: 'magnitude', sparsity: 0.3, save: 'sparse' })).output;
    const twice = await pruned({ model: once, method: 'wanda', sparsity: 0.6 });
    expect(JSON.parse(readFileSync(join(twice.output, 'config.json'), 'utf8')).quantization_config).toBeUndefined();
    expect(twice.sparsity).toBeGreaterThan(0.59);
    for (const [name, tensor] of tensorsOf(twice.output)) {
      if (!isExpert(name)) continue;
      expect(Math.min(...zerosOf(bitsOf(tensor), tensor.shape[1]!)), name).toBe(Math.floor(0.6 * tensor.shape[1]!));
      break;
    }
  });
});
