/** Shorter types of activations and of the KV cache: how little results change, and that they keep their bits. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadSotuCorpus } from '../lib/calibration/corpus-sotu.ts';
import { evaluationWindows } from '../lib/calibration/sequences.ts';
import { loadTokens } from '../lib/calibration/token-source.ts';
import { type LoadOptions, Model, perplexity } from '../lib/index.ts';
import { demoModel } from './support/models.ts';
import { Feed, freshSeed, logitsOf, randomFrom } from './support/steps.ts';

const context = 2048;
const shorter = [
  { name: 'activations of bf16', options: { activations: 'bf16' }, perplexityLimit: 0.001, differing: 0.005 },
  { name: 'a cache of bf16', options: { kvCache: 'bf16' }, perplexityLimit: 0.001, differing: 0.005 },
  { name: 'a cache of int8', options: { kvCache: 'int8' }, perplexityLimit: 0.005, differing: 0.01 },
] as const;

const models = new Map<LoadOptions, Model>();
let float32: Model;
let ids: Uint32Array;
beforeAll(async () => {
  const load = (options: LoadOptions) => Model.load(demoModel, { ...options, kvTokens: 2 * context, threads: 2 });
  float32 = await load({});
  for (const { options } of shorter) models.set(options, await load(options));
  const { tokenizer, spec } = float32;
  const corpus = await loadSotuCorpus();
  const documents = await loadTokens(corpus!.evaluation, { tokenizer, vocabularySize: spec.vocabularySize });
  ids = evaluationWindows(documents, { sequenceLength: context, maxWindows: 6 }).ids;
});
afterAll(() => {
  for (const model of [float32, ...models.values()]) model.dispose();
});

test('a shorter cache takes its share of the memory', () => {
  const { kvHeads, headDim } = float32.spec.layers[0]!.attention;
  const elements = 2 * float32.kv.size * 16 * kvHeads * headDim * float32.spec.layers.length;
  expect(float32.info.kvBytes).toBe(elements * 4);
  const [, bf16, int8] = shorter.map(({ options }) => models.get(options)!.info.kvBytes);
  expect(bf16).toBe(elements * 2);
  expect(int8).toBe(elements + (elements / headDim) * 4);
});

describe.each(shorter)('$name', ({ name, options, perplexityLimit, differing }) => {
  test('changes perplexity over long contexts by little, and by something', async () => {
    const wanted = await perplexity({ model: float32, data: ids, sequenceLength: context });
    const found = await perplexity({ model: demoModel, ...options, data: ids, sequenceLength: context });
    const change = found.perplexity / wanted.perplexity - 1;
    console.log(
      `${name}: perplexity ${found.perplexity}, float32 ${wanted.perplexity}, ${(100 * change).toFixed(4)} %`,
    );
    expect(found.tokens).toBe(6 * (context - 1));
    expect(Math.abs(change)).toBeLessThan(perplexityLimit);
    expect(change).not.toBe(0);
  });

  test('gives the same next token almost wherever that was clear', async () => {
    const window = [...ids.subarray(0, context)];
    const wanted = await logitsOf(float32, window);
    const found = await logitsOf(models.get(options)!, window);
    let [clear, other] = [0, 0];
    for (const [i, row] of wanted.entries()) {
      const [best, gap] = topTwo(row);
      if (gap <= 0.2) continue;
      clear++;
      if (topTwo(found[i]!)[0] !== best) other++;
    }
    console.log(`${name}: ${other} of ${clear} clear next tokens differ`);
    // A router that is near a tie may take another expert for any small change, and the logits then jump.
    expect(other / clear).toBeLessThan(differing);
    expect(clear).toBeGreaterThan(context / 2);
  });

  test('gives the same bits at once, in pieces and token by token', async () => {
    const random = randomFrom(freshSeed());
    const window = [...ids.subarray(0, 150)];
    const wanted = await logitsOf(models.get(options)!, window);
    for (const longest of [1, 40]) {
      const feed = new Feed(models.get(options)!);
      const rows: Float32Array[] = [];
      while (rows.length < window.length) {
        const count = 1 + Math.floor(random() * longest);
        rows.push(...(await feed.logits(window.slice(rows.length, rows.length + count))));
      }
      feed.release();
      expect(rows).toEqual(wanted);
    }
  });
});

test.each([
  ['kvCache', 'float32, bf16, int8'],
  ['activations', 'float32, bf16'],
])('an unknown type for %s is refused by name', async (field, allowed) => {
  const loading = Model.load(demoModel, { [field]: 'fp8' });
  await expect(loading).rejects.toMatchObject({ code: 'USAGE', field, message: expect.stringContaining(allowed) });
});

/** Index of the largest logit, and how far it is ahead of the second. */
function topTwo(row: Float32Array): [number, number] {
  let best = 0;
  for (let i = 1; i < row.length; i++) if (row[i]! > row[best]!) best = i;
  let second = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < row.length; i++) if (i !== best) second = Math.max(second, row[i]!);
  return [best, row[best]! - second];
}
