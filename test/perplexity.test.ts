/** Perplexity: the definition computed independently, whatever the windows are. */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { inspect, Model, type PerplexityOptions, perplexity, prune } from '../lib/index.ts';
import { bitsOf, tensorsOf } from './support/checkpoints.ts';
import { demoModel } from './support/models.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { difference, freshSeed, logitsOf, randomFrom } from './support/steps.ts';

let model: Model;
beforeAll(async () => {
  model = await Model.load(demoModel, { threads: 2 });
  return () => model.dispose();
});

function drawIds(count: number): Uint32Array {
  const random = randomFrom(freshSeed());
  return Uint32Array.from({ length: count }, () => Math.floor(random() * 4096));
}

/** Mean negative log-likelihood in float64 of windows of `length`, each alone. */
async function reference(ids: Uint32Array, length: number): Promise<{ windows: number; tokens: number; nll: number }> {
  const windows = Math.floor(ids.length / length);
  let [sum, tokens] = [0, 0];
  for (let w = 0; w < windows; w++) {
    const window = [...ids.subarray(w * length, (w + 1) * length)];
    const rows = await logitsOf(model, window);
    for (let i = 0; i + 1 < length; i++, tokens++) {
      const row = rows[i]!;
      const highest = row.reduce((a, b) => Math.max(a, b));
      let total = 0;
      for (const logit of row) total += Math.exp(logit - highest);
      sum += highest + Math.log(total) - row[window[i + 1]!]!;
    }
  }
  return { windows, tokens, nll: sum / tokens };
}

describe('perplexity', () => {
  test.each([2, 3, 17, 64, 300])('in windows of %i tokens is the one in float64', async (sequenceLength) => {
    const ids = drawIds(sequenceLength === 2 ? 2200 : 620);
    const wanted = await reference(ids, sequenceLength);
    for (const on of [model, demoModel]) {
      const found = await perplexity({ model: on, data: ids, sequenceLength });
      expect(found).toMatchObject({ windows: wanted.windows, tokens: wanted.tokens, sequenceLength });
      expect(Math.abs(found.meanNll - wanted.nll)).toBeLessThan(1e-5);
      expect(found.perplexity).toBe(Math.exp(found.meanNll));
    }
  });

  test('does not depend on threads, on the cache, or on what runs beside it', async () => {
    const data = drawIds(1500);
    const options = { data, sequenceLength: 100 };
    const wanted = await perplexity({ model, ...options });
    expect(await perplexity({ model: demoModel, threads: 1, ...options })).toEqual(wanted);
    await using tight = await Model.load(demoModel, { kvTokens: 240 });
    expect(await perplexity({ model: tight, ...options })).toEqual(wanted);
    const both = await Promise.all([perplexity({ model, ...options }), perplexity({ model, ...options })]);
    expect(both).toEqual([wanted, wanted]);
    expect(model.kv.free).toBe(model.kv.size);
  });

  test('takes windows no longer than the context, and as many as asked', async () => {
    const data = drawIds(4500);
    const warnings: string[] = [];
    const onWarning = (message: string) => warnings.push(message);
    const seen: number[] = [];
    const onProgress = ({ done }: { done: number }) => seen.push(done);
    const found = await perplexity({ model: demoModel, data, sequenceLength: 10 ** 9, onWarning, onProgress });
    expect(found).toMatchObject({ windows: 2, sequenceLength: 2048, tokens: 2 * 2047 });
    expect(seen).toEqual([1, 2]);
    const one = await perplexity({ model, data: data.subarray(0, 2048) });
    expect(await perplexity({ model, data, maxWindows: 1 })).toEqual(one);
    expect(await perplexity({ model, data: data.subarray(0, 50) })).toMatchObject({ windows: 1, sequenceLength: 50 });
  });

  const wrong: [string, Partial<PerplexityOptions>, string][] = [
    ['a window of one token', { sequenceLength: 1 }, 'USAGE'],
    ['a window that is no number', { sequenceLength: Number.NaN }, 'USAGE'],
    ['no windows', { maxWindows: 0 }, 'USAGE'],
    ['a single token', { data: Uint32Array.of(3) }, 'DATA'],
    ['ids of another vocabulary', { data: Uint32Array.of(3, 5000) }, 'DATA'],
    ['a missing file', { data: '/nowhere/text.txt' }, 'DATA'],
    ['a missing model', { model: '/nowhere/model' }, 'NOT_A_FILE'],
  ];
  test.each(wrong)('refuses %s', async (_what, options, code) => {
    for (const on of [model, demoModel]) {
      await expect(perplexity({ model: on, data: drawIds(10), ...options })).rejects.toMatchObject({ code });
    }
  });

  test('stops when asked to', async () => {
    const control = new AbortController();
    const onProgress = () => control.abort();
    const run = perplexity({ model, data: drawIds(6000), sequenceLength: 1000, signal: control.signal, onProgress });
    await expect(run).rejects.toMatchObject({ code: 'ABORTED' });
    expect(model.kv.free).toBe(model.kv.size);
  });
});

describe('a pruned model', () => {
  const calibration = Uint32Array.from({ length: 512 }, (_, i) => (i * 997) % 4096);
  const budgets = [{ sparsity: 0.5 }, { pattern: '2:4' }, { pattern: '4:8' }, { sparsity: 0.8 }];
  test.each(budgets)('runs in its sparse format as it does dense, and inspect counts its zeros: %o', async (budget) => {
    const output = join(temporaryFolder(), 'pruned');
    const pruned = await prune({ model: demoModel, output, calibration, samples: 8, sequenceLength: 64, ...budget });
    await using sparse = await Model.load(output);
    await using dense = await Model.load(output, { format: 'dense' });
    expect(sparse.info.formats).not.toEqual(dense.info.formats);
    expect(sparse.info.expertBytes).toBeLessThan(dense.info.expertBytes * 0.7);
    const ids = [...drawIds(90)];
    const [a, b] = [await logitsOf(sparse, ids), await logitsOf(dense, ids)];
    for (const [i, row] of a.entries()) expect(difference(row, b[i]!)).toBeLessThan(1e-5);
    const seen = await inspect(output);
    let zeros = 0;
    for (const [name, tensor] of tensorsOf(output)) {
      if (name.includes('.experts.')) for (const bits of bitsOf(tensor)) zeros += bits === 0 ? 1 : 0;
    }
    expect(seen.zeros).toBe(zeros);
    expect(pruned.zeros).toBe(zeros);
    expect(seen.sparsity).toBe(pruned.sparsity);
    expect(seen.pruned!.recipe).toEqual(pruned.recipe);
  });
});
