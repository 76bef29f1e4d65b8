/** Continuous batching on the embedded model: what joins, what waits, what is shared, what is given back. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type GenerateOptions, Model } from '../lib/index.ts';
import type { NativeStep } from '../lib/native.ts';
import { demoModel } from './support/models.ts';
import { randomIds } from './support/prune.ts';
import { freshSeed } from './support/steps.ts';

let model: Model;
beforeAll(async () => {
  model = await Model.load(demoModel);
});
afterAll(() => model.dispose());

type Ids = readonly number[] | Uint32Array;

async function idsOf(prompt: Ids, options: GenerateOptions = {}, on: Model = model): Promise<number[]> {
  const found: number[] = [];
  for await (const { ids } of on.generate([...prompt], { ignoreEos: true, ...options })) found.push(...ids);
  return found;
}

/** The steps that run during `work`. */
async function stepsOf<T>(on: Model, work: () => Promise<T>): Promise<{ steps: NativeStep[]; result: T }> {
  const steps: NativeStep[] = [];
  const { step } = on;
  on.step = (...args) => {
    steps.push(args[0]);
    return step.apply(on, args);
  };
  try {
    return { result: await work(), steps };
  } finally {
    on.step = step;
  }
}

const rowsOf = (step: NativeStep) => step.slices.map(({ count }) => count);

describe('sequences', () => {
  test('that run at the same time share their steps and get what each gets alone, bit for bit', async () => {
    const seed = freshSeed();
    const prompts = Array.from({ length: 16 }, (_, i) => randomIds(seed + i, 3 + 7 * i));
    const options = (i: number): GenerateOptions => ({
      maxTokens: 24,
      ...(i % 2 === 0 ? {} : { temperature: 1, seed: i }),
    });
    const alone: number[][] = [];
    await using other = await Model.load(demoModel);
    for (const [i, prompt] of prompts.entries()) alone.push(await idsOf(prompt, options(i), other));
    const { steps, result } = await stepsOf(model, () => Promise.all(prompts.map((ids, i) => idsOf(ids, options(i)))));
    expect(result).toEqual(alone);
    // 885 tokens of prompts fill two steps; then all decode together.
    expect(steps.length).toBeLessThanOrEqual(28);
    expect(Math.max(...steps.map(({ slices }) => slices.length))).toBe(16);
    expect(model.kv.free).toBe(model.kv.size);
  });

  test('join while others decode, and a long prompt does not hold those up', async () => {
    const seed = freshSeed();
    const first = model.generate([...randomIds(seed, 5)], { maxTokens: 200, ignoreEos: true });
    await first.next();
    const { steps } = await stepsOf(model, async () => {
      const late = idsOf(randomIds(seed + 1, 1500), { maxTokens: 2 });
      for (let i = 0; i < 12; i++) await first.next();
      await late;
    });
    await first.return();
    const mixed = steps.filter(({ slices }) => slices.length === 2);
    expect(mixed.length).toBeGreaterThanOrEqual(3);
    for (const step of mixed) expect(rowsOf(step)[0], 'the one that decodes goes first').toBe(1);
    for (const step of steps) expect(step.tokens.length).toBeLessThanOrEqual(512);
  });

  test('whose reader is slow wait for it, and the others do not', async () => {
    const seed = freshSeed();
    const slow = model.generate([...randomIds(seed, 5)], { maxTokens: 100, ignoreEos: true });
    await slow.next();
    const { steps, result } = await stepsOf(model, () => idsOf(randomIds(seed + 1, 5), { maxTokens: 40 }));
    expect(result.length).toBe(40);
    expect(steps.filter(({ slices }) => slices.length === 2).length).toBeLessThanOrEqual(5);
    let rest = 1;
    for await (const { ids } of slow) rest += ids.length;
    expect(rest).toBe(100);
  });
});

describe('a cache that is too small for all', () => {
  test('is given to those that came first; the others start again and get the same', async () => {
    const seed = freshSeed();
    const prompts = Array.from({ length: 6 }, (_, i) => randomIds(seed + i, 40));
    const alone: number[][] = [];
    for (const prompt of prompts) alone.push(await idsOf(prompt, { maxTokens: 60 }));
    // Three prompts fit, not three whole sequences.
    await using tight = await Model.load(demoModel, { kvTokens: 12 * 16 });
    const finished: number[] = [];
    const { steps, result } = await stepsOf(tight, () =>
      Promise.all(
        prompts.map(async (prompt, i) => {
          const ids = await idsOf(prompt, { maxTokens: 60 }, tight);
          finished.push(i);
          return ids;
        }),
      ),
    );
    expect(result).toEqual(alone);
    expect(finished).toEqual([0, 1, 2, 3, 4, 5]);
    const computed = steps.reduce((sum, { tokens }) => sum + tokens.length, 0);
    expect(computed, 'some ran twice').toBeGreaterThan(6 * 99);
    expect(tight.kv.free).toBe(tight.kv.size);
  });

  test('that somebody else has taken is an error, and not a wait without end', async () => {
    const taken = model.kv.take(model.kv.size - 1);
    await expect(idsOf(randomIds(1, 40))).rejects.toMatchObject({ code: 'CONTEXT_FULL' });
    expect((await idsOf([1, 2, 3], { maxTokens: 5 })).length).toBe(5);
    model.kv.release(taken);
    expect((await idsOf(randomIds(1, 40), { maxTokens: 5 })).length).toBe(5);
  });

  test('refuses at once what can never fit, while others run', async () => {
    await using tight = await Model.load(demoModel, { kvTokens: 64 });
    const running = idsOf([1, 2, 3], { maxTokens: 30 }, tight);
    await expect(idsOf(randomIds(1, 65), {}, tight)).rejects.toMatchObject({ code: 'CONTEXT_FULL' });
    expect((await running).length).toBe(30);
  });
});

describe('the beginning of a text', () => {
  test('is computed once, for those at the same time and for later ones', async () => {
    const seed = freshSeed();
    const prefix = randomIds(seed, 100);
    const prompts = [1, 2, 3].map((i) => [...prefix, ...randomIds(seed + i, 10)]);
    await using other = await Model.load(demoModel);
    const expected: number[][] = [];
    for (const prompt of prompts) {
      await using fresh = await Model.load(demoModel);
      expected.push(await idsOf(prompt, { maxTokens: 8 }, fresh));
    }
    const first = await stepsOf(other, () => idsOf(prompts[0]!, { maxTokens: 8 }, other));
    expect(first.steps[0]!.tokens.length).toBe(110);
    const later = await stepsOf(other, () => Promise.all(prompts.map((ids) => idsOf(ids, { maxTokens: 8 }, other))));
    // Of 110 tokens 96 fill blocks; the first prompt's own seventh block holds its last tokens and what it wrote.
    expect(rowsOf(later.steps[0]!)).toEqual([14, 14, 14]);
    expect([first.result, ...later.result]).toEqual([expected[0], ...expected]);
    expect(other.kv.free).toBe(other.kv.size);
  });

  test('is forgotten when its blocks are needed, the longest unused first', async () => {
    await using tight = await Model.load(demoModel, { kvTokens: 16 * 16 });
    const seed = freshSeed();
    const [a, b, c] = [1, 2, 3].map((i) => [...randomIds(seed + i, 97)]) as [number[], number[], number[]];
    const tokensOf = async (ids: number[]) =>
      (await stepsOf(tight, () => idsOf(ids, { maxTokens: 1 }, tight))).steps.reduce(
        (sum, s) => sum + s.tokens.length,
        0,
      );
    expect(await tokensOf(a)).toBe(97);
    expect(await tokensOf(b)).toBe(97);
    expect(await tokensOf(a)).toBe(1);
    // Takes two blocks that hold nothing, then those of b, which were not used since.
    expect(await tokensOf(c)).toBe(97);
    expect(await tokensOf(a)).toBe(1);
    expect(await tokensOf(b)).toBeGreaterThan(1);
    expect(tight.kv.free).toBe(tight.kv.size);
  });
});

test('a failed step ends the sequences that it ran, and no others', async () => {
  const { step } = model;
  const running = idsOf([5, 6, 7], { maxTokens: 20 });
  let calls = 0;
  model.step = (...args) => (++calls === 3 ? Promise.reject(new Error('the step failed')) : step.apply(model, args));
  await expect(running).rejects.toThrow('the step failed');
  model.step = step;
  expect(model.kv.free).toBe(model.kv.size);
  expect((await idsOf([5, 6, 7], { maxTokens: 20 })).length).toBe(20);
});

test('one that is aborted leaves, the others go on', async () => {
  const control = new AbortController();
  const others = [1, 2, 3].map((i) => idsOf([i, 2 * i], { maxTokens: 40 }));
  const seen: number[] = [];
  const aborted = (async () => {
    for await (const { ids } of model.generate([9, 8], { maxTokens: 40, ignoreEos: true, signal: control.signal })) {
      seen.push(...ids);
      if (seen.length === 4) control.abort();
    }
  })();
  await expect(aborted).rejects.toMatchObject({ code: 'ABORTED' });
  expect(seen.length).toBe(4);
  for (const ids of await Promise.all(others)) expect(ids.length).toBe(40);
  expect(model.kv.free).toBe(model.kv.size);
});
