/** What pruning writes: the right zeros, nothing else touched, and the same bytes for anybody who runs it again. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { convertCheckpoint } from '../lib/checkpoint/index.ts';
import { OutputFolder } from '../lib/checkpoint/output.ts';
import { type Manifest, type MethodName, Model, type PruneOptions, type PruneResult, prune } from '../lib/index.ts';
import { version } from '../lib/version.ts';
import { bitsOf, contentsOf, editedCheckpoint, hashesOf, tensorsOf } from './support/checkpoints.ts';
import { demoModel, familyFolder } from './support/models.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { freshSeed, logitsOf, randomFrom } from './support/steps.ts';

/** Token ids that look like nothing in particular. */
function randomIds(seed: number, count: number, vocabulary = 4096): Uint32Array {
  const random = randomFrom(seed);
  return Uint32Array.from({ length: count }, () => Math.floor(random() * vocabulary));
}

const calibration = randomIds(7, 8 * 64);
const small = { model: demoModel, calibration, samples: 8, sequenceLength: 64 } as const;

/** Prunes into a folder that goes with the test. */
async function pruned(options: Partial<PruneOptions> = {}): Promise<PruneResult> {
  return prune({ ...small, output: join(temporaryFolder(), 'pruned'), ...options });
}

const isExpert = (name: string) => name.includes('.experts.');

/** Zeros of each row, of all columns or of each `group` of them. */
function zerosOf(bits: Uint16Array | Uint32Array, group: number): number[] {
  const counts = [];
  for (let start = 0; start < bits.length; start += group) {
    let zeros = 0;
    for (let i = start; i < start + group; i++) if (bits[i] === 0) zeros++;
    counts.push(zeros);
  }
  return counts;
}

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
    const run = prune({ ...small, output: join(folder, 'out'), pattern: '2:5' });
    await expect(run).rejects.toMatchObject({ code: 'USAGE' });
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
      format: 1,
      version,
      recipe: {
        method: 'sparsegpt',
        budget: { sparsity: 0.6 },
        routerWeighting: true,
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

describe('what cannot be pruned as asked', () => {
  /** The demo whose experts 0, 1 and 3 of layer 1 have the same router row: ties go to the lower two. */
  const starved = (dir: string) =>
    editedCheckpoint(demoModel, dir, (tensors) => {
      const router = tensors.get('model.layers.1.block_sparse_moe.gate.weight')!;
      const row = router.bytes.byteLength / 8;
      for (const expert of [1, 3]) router.bytes.copyWithin(expert * row, 0, row);
    });

  test.each(['wanda', 'moe-pruner', 'sparsegpt'] as const)(
    'an expert that saw no tokens is pruned by magnitude, with a warning: %s',
    async (method) => {
      const model = await starved(join(temporaryFolder(), 'starved'));
      const heard: string[] = [];
      const result = await pruned({
        model,
        method,
        onProgress: (progress) => progress.type === 'warning' && heard.push(progress.message),
      });
      const fallback = result.layers.flatMap(({ layer, experts }) =>
        experts.filter((expert) => expert.fallback).map(({ expert, tokens }) => ({ layer, expert, tokens })),
      );
      expect(fallback).toContainEqual({ layer: 1, expert: 3, tokens: 0 });
      const said = result.warnings.filter((text) => text.includes('layer 1, expert 3'));
      expect(said).toEqual([expect.stringMatching(/no calibration tokens.*magnitude/)]);
      expect(heard).toEqual(result.warnings);
      for (const name of ['w1', 'w2', 'w3']) {
        const key = `model.layers.1.block_sparse_moe.experts.3.${name}.weight`;
        const [old, now] = [tensorsOf(model).get(key)!, tensorsOf(result.output).get(key)!];
        const [dense, bits] = [bitsOf(old), bitsOf(now)];
        const columns = now.shape[1]!;
        const region = method === 'sparsegpt' ? 128 : columns;
        // Kept weights are the dense ones, and in its row (or block) each is at least as large as any that went.
        const parts = new Map<string, { gone: number; kept: number; zeros: number }>();
        for (let i = 0; i < bits.length; i++) {
          if (bits[i] !== 0 && bits[i] !== dense[i]) throw new Error(`${key}: a kept weight changed`);
          const where = method === 'sparsegpt' ? `${Math.floor((i % columns) / region)}` : `${Math.floor(i / columns)}`;
          const part = parts.get(where) ?? { gone: 0, kept: Number.POSITIVE_INFINITY, zeros: 0 };
          const magnitude = dense[i]! & 0x7fff;
          if (bits[i] === 0) [part.gone, part.zeros] = [Math.max(part.gone, magnitude), part.zeros + 1];
          else part.kept = Math.min(part.kept, magnitude);
          parts.set(where, part);
        }
        for (const { gone, kept, zeros } of parts.values()) {
          expect(gone).toBeLessThanOrEqual(kept);
          expect(zeros).toBeGreaterThan(0);
        }
      }
    },
  );

  const poison: [string, string, number][] = [
    ['an expert', 'model.layers.2.block_sparse_moe.experts.5.w3.weight', 0x7fc0],
    ['attention', 'model.layers.1.self_attn.q_proj.weight', 0xff80],
    ['a router', 'model.layers.3.block_sparse_moe.gate.weight', 0x7f80],
    ['a norm', 'model.layers.0.input_layernorm.weight', 0x7fc1],
    ['the embedding', 'model.embed_tokens.weight', 0x7fc0],
    ['the head', 'lm_head.weight', 0x7f80],
    ['the last norm', 'model.norm.weight', 0xffc0],
  ];
  const poisoned = (dir: string, tensor: string, bits: number) =>
    editedCheckpoint(demoModel, dir, (tensors) => {
      const { bytes } = tensors.get(tensor)!;
      new DataView(bytes.buffer, bytes.byteOffset).setUint16(64, bits, true);
    });

  test.each(poison)('NaN or infinity in %s is refused by name', async (_what, tensor, bits) => {
    const folder = temporaryFolder();
    const model = await poisoned(join(folder, 'poisoned'), tensor, bits);
    for (const method of ['magnitude', 'wanda'] as const) {
      const run = prune({ ...small, model, method, output: join(folder, 'out') });
      await expect(run).rejects.toMatchObject({ code: 'NONFINITE', tensor, message: expect.stringContaining(tensor) });
      expect(existsSync(join(folder, 'out'))).toBe(false);
      // Layers that were finished before it was found are kept for a run that resumes.
      rmSync(join(folder, 'out.partial'), { recursive: true, force: true });
    }
  });

  test.each(['magnitude', 'wanda', 'sparsegpt'] as const)(
    '--allow-nonfinite leaves such a matrix as it is: %s',
    async (method) => {
      const [, tensor, bits] = poison[0]!;
      const model = await poisoned(join(temporaryFolder(), 'poisoned'), tensor, bits);
      const result = await pruned({ model, method, allowNonfinite: true });
      const [before, after] = [tensorsOf(model), tensorsOf(result.output)];
      expect(Buffer.compare(after.get(tensor)!.bytes, before.get(tensor)!.bytes)).toBe(0);
      expect(result.layers[2]!.experts[5]!.skipped).toEqual(['up']);
      expect(result.warnings.join('\n')).toMatch(/layer 2, expert 5, up holds NaN or infinity/);
      let finite = true;
      for (const [name, held] of after) {
        if (!isExpert(name) || name === tensor) continue;
        const values = bitsOf(held);
        finite &&= values.every((value) => (value & 0x7f80) !== 0x7f80);
        expect(zerosOf(values, values.length)[0]! / values.length, name).toBeGreaterThan(0.49);
      }
      expect(finite).toBe(true);
      expect(result.size).toBe(4 * 8 * 3 * 192 * 384);
    },
  );
});

describe('fused experts', () => {
  /** The same weights with one tensor for each expert's matrix, as checkpoints of transformers 4 have them. */
  const separate = (family: string, dir: string) =>
    editedCheckpoint(join(familyFolder, family), dir, (tensors) => {
      for (const [name, { dtype, shape, bytes }] of [...tensors]) {
        const match = /^(.*)\.mlp\.experts\.(gate_up_proj|down_proj)$/.exec(name);
        if (match === null) continue;
        tensors.delete(name);
        const [experts, rows, columns] = shape as [number, number, number];
        const names = match[2] === 'down_proj' ? ['down_proj'] : ['gate_proj', 'up_proj'];
        const part = bytes.byteLength / experts / names.length;
        for (let expert = 0; expert < experts; expert++) {
          for (const [i, own] of names.entries()) {
            const begin = (expert * names.length + i) * part;
            tensors.set(`${match[1]}.mlp.experts.${expert}.${own}.weight`, {
              dtype,
              shape: [rows / names.length, columns],
              bytes: bytes.slice(begin, begin + part),
            });
          }
        }
      }
      if (!family.startsWith('mixtral')) return;
      const old: Record<string, string> = { gate_proj: 'w1', down_proj: 'w2', up_proj: 'w3' };
      for (const [name, tensor] of [...tensors]) {
        if (!name.includes('.mlp.')) continue;
        tensors.delete(name);
        const renamed = name.replace('.mlp.', '.block_sparse_moe.');
        tensors.set(
          renamed.replace(/(gate|up|down)_proj/, (own) => old[own]!),
          tensor,
        );
      }
    });

  const families = readdirSync(familyFolder).filter((name) => name.endsWith('-fused'));
  test.each(families)('keep their names and shapes, and are pruned as separate ones are: %s', async (family) => {
    const fused = join(familyFolder, family);
    const apart = await separate(family, join(temporaryFolder(), 'separate'));
    const ids = [...randomIds(freshSeed(), 40, 128)];
    for (const recipe of [{ method: 'moe-pruner' }, { method: 'sparsegpt', pattern: '2:4', save: 'sparse' }] as const) {
      const options = { ...recipe, calibration: randomIds(3, 512, 128), samples: 16, sequenceLength: 32 };
      const a = await pruned({ ...options, model: fused });
      const b = await pruned({ ...options, model: apart });
      const [before, after] = [tensorsOf(fused), tensorsOf(a.output)];
      expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
      for (const [name, { dtype, shape }] of after) {
        expect([dtype, shape]).toEqual([before.get(name)!.dtype, before.get(name)!.shape]);
      }
      const logits = [];
      for (const { output } of [a, b]) {
        await using model = await Model.load(output);
        logits.push(await logitsOf(model, ids));
      }
      expect(logits[1]).toEqual(logits[0]);
      expect(a.layers).toEqual(b.layers);
      expect(a.sparsity).toBeGreaterThan(0.49);
    }
  });
});
