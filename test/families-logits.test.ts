/** Every family's engine against transformers in float32, on checkpoints of random weights that exercise its features. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../lib/checkpoint/index.ts';
import { Model } from '../lib/index.ts';
import { families, familyFolder } from './support/models.ts';
import { collectIds, difference, Feed, freshSeed, logitsOf, randomFrom, runBatch } from './support/steps.ts';

interface Golden {
  readonly ids: number[];
  readonly positions: number[];
  readonly logits: number[][];
  readonly greedy: number[];
}

/** Of the largest logit: what float32 sums in another order differ by, and the goldens' six digits. */
const TOLERANCE = 3e-5;

test('there are families of each architecture', () => {
  expect(families.length).toBeGreaterThanOrEqual(9);
  for (const name of ['mixtral', 'olmoe', 'qwen2-moe', 'qwen3-moe']) {
    expect(families.filter((family) => family.startsWith(name)).length).toBeGreaterThanOrEqual(2);
  }
});

describe.each(families)('%s', (family) => {
  const folder = join(familyFolder, family);
  const golden = JSON.parse(readFileSync(join(folder, 'golden.json'), 'utf8')) as Golden;
  let model: Model;
  beforeAll(async () => {
    model = await Model.load(folder, { threads: 2 });
    return () => model.dispose();
  });

  test('has the logits of transformers', async () => {
    const logits = await logitsOf(model, golden.ids);
    expect(golden.positions.length).toBeGreaterThan(0);
    for (const [i, position] of golden.positions.entries()) {
      expect(difference(logits[position]!, golden.logits[i]!)).toBeLessThan(TOLERANCE);
    }
  });

  test('continues greedily as transformers does', async () => {
    const options = { maxTokens: golden.greedy.length, ignoreEos: true };
    expect(await collectIds(model.generate(golden.ids, options))).toEqual(golden.greedy);
  });

  test('gives the same bits in one chunk, token by token, and in random chunks over scattered blocks', async () => {
    const random = randomFrom(freshSeed());
    const ids = [...golden.ids, ...golden.greedy];
    const whole = await logitsOf(model, ids);
    const single: Float32Array[] = [];
    const feed = new Feed(model);
    for (const id of ids) single.push(...(await feed.logits([id])));
    feed.release();
    expect(single).toEqual(whole);
    for (let round = 0; round < 4; round++) {
      // Two sequences that grow in turn have their blocks mixed.
      const [a, b] = [new Feed(model), new Feed(model)];
      const found: Float32Array[] = [];
      for (let at = 0; at < ids.length; ) {
        const count = 1 + Math.floor(random() * Math.min(20, ids.length - at));
        found.push(...(await a.logits(ids.slice(at, at + count))));
        await b.logits(ids.slice(at, at + count));
        at += count;
      }
      a.release();
      b.release();
      expect(found).toEqual(whole);
    }
    expect(model.kv.free).toBe(model.kv.size);
  });

  test('gives the same bits alone and beside other sequences', async () => {
    const random = randomFrom(freshSeed());
    const { maxPositions, vocabularySize } = model.spec;
    const draw = (length: number) => Array.from({ length }, () => Math.floor(random() * vocabularySize));
    const texts = [1, 17, 2, Math.min(40, maxPositions), 5].map(draw);
    texts.splice(2, 0, golden.ids);
    const alone = [];
    for (const text of texts) alone.push(await logitsOf(model, text));
    const feeds = texts.map(() => new Feed(model));
    // Uneven chunks: some sequences are prefilled while others go on by one token.
    const found: Float32Array[][] = texts.map(() => []);
    for (let step = 0; texts.some((text, i) => feeds[i]!.length < text.length); step++) {
      const running = texts.flatMap((text, i) => (feeds[i]!.length < text.length ? [i] : []));
      const slices = running.map((i) => {
        const at = feeds[i]!.length;
        return feeds[i]!.slice(texts[i]!.slice(at, at + 1 + ((step * 7 + i * 5) % 11)));
      });
      const results = await runBatch(model, slices);
      for (const [k, i] of running.entries()) found[i]!.push(...results[k]!);
    }
    for (const feed of feeds) feed.release();
    expect(found).toEqual(alone);
  });

  test('weights rounded to bf16 stay near', async () => {
    using checkpoint = openCheckpoint(folder);
    const types = new Set([...checkpoint.names()].map((name) => checkpoint.get(name).dtype));
    await using rounded = await Model.load(folder, { threads: 2, weights: 'bf16' });
    const logits = await logitsOf(rounded, golden.ids);
    const distances = golden.positions.map((position, i) => difference(logits[position]!, golden.logits[i]!));
    const isBf16 = types.size === 1 && types.has('BF16');
    // A bf16 checkpoint is what it was; others lose 8 to 16 bits of mantissa.
    for (const distance of distances) expect(distance).toBeLessThan(isBf16 ? TOLERANCE : 0.1);
    const share = rounded.info.weightBytes / model.info.weightBytes;
    if (isBf16) expect(share).toBe(1);
    else expect(share).toBeLessThan(0.6);
  });
});
