/** Log-probabilities, penalties and biases of the library, against the logits of the model in float64. */
import { beforeAll, describe, expect, test } from 'vitest';
import { type GenerateOptions, Model, type TokenLogprob } from '../lib/index.ts';
import { demoModel } from './support/models.ts';
import { freshSeed, logitsOf, randomFrom } from './support/steps.ts';

let model: Model;
beforeAll(async () => {
  model = await Model.load(demoModel, { threads: 2 });
  return () => model.dispose();
});

const prompt = 'The history of the city begins';
const promptIds = () => [...model.tokenizer!.encode(prompt)];

async function run(options: GenerateOptions, text: string | number[] = prompt) {
  const ids: number[] = [];
  const logprobs: TokenLogprob[] = [];
  for await (const piece of model.generate(text, { ignoreEos: true, ...options })) {
    ids.push(...piece.ids);
    logprobs.push(...(piece.logprobs ?? []));
  }
  return { ids, logprobs };
}

/** log softmax in float64. */
function logSoftmax(logits: Float32Array): Float64Array {
  const highest = Math.max(...logits);
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - highest);
  return Float64Array.from(logits, (logit) => logit - highest - Math.log(sum));
}

function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}

/** Ids of the `count` largest, the lower id first among equals. */
function largest(values: Float64Array, count: number): number[] {
  return [...values.keys()].sort((a, b) => values[b]! - values[a]! || a - b).slice(0, count);
}

function check(found: TokenLogprob, logits: Float32Array, id: number, top: number) {
  const wanted = logSoftmax(logits);
  expect(found.id).toBe(id);
  expect(found.logprob).toBeCloseTo(wanted[id]!, 5);
  expect(found.top.map((token) => token.id)).toEqual(largest(wanted, top));
  for (const token of found.top) expect(token.logprob).toBeCloseTo(wanted[token.id]!, 5);
}

describe('log-probabilities', () => {
  test.each([0, 5, 20])('of an answer are the model’s own, whatever it is drawn by: top %i', async (topLogprobs) => {
    const { ids, logprobs } = await run({
      maxTokens: 12,
      temperature: 1.7,
      topK: 50,
      seed: freshSeed(),
      repetitionPenalty: 1.3,
      presencePenalty: 1,
      logitBias: { 5: 3 },
      topLogprobs,
    });
    const text = promptIds();
    expect(logprobs.length).toBe(12);
    for (const [i, found] of logprobs.entries()) {
      check(found, (await logitsOf(model, text)).at(-1)!, ids[i]!, topLogprobs);
      text.push(ids[i]!);
    }
  });

  test('of a text are those of its tokens, also where it runs in chunks beside others', async () => {
    const random = randomFrom(freshSeed());
    const text = Array.from({ length: 700 }, () => Math.floor(random() * 4096));
    const others = [
      run({ maxTokens: 20, topLogprobs: 3 }),
      run({ maxTokens: 30 }),
      model.score(text, { topLogprobs: 7 }),
    ];
    const found = await model.score(text, { topLogprobs: 4 });
    await Promise.all(others);
    const logits = await logitsOf(model, text);
    expect(found.length).toBe(700);
    expect(found[0]).toBeNull();
    for (let i = 1; i < text.length; i++) check(found[i]!, logits[i - 1]!, text[i]!, 4);
    // The cache knows the text now, and its rows are computed all the same.
    expect(await model.score(text, { topLogprobs: 4 })).toEqual(found);
    expect(await model.score(text.slice(0, 1))).toEqual([null]);
    expect(model.kv.free).toBe(model.kv.size);
  });

  test('survive a cache that is too small for all', async () => {
    await using tight = await Model.load(demoModel, { kvTokens: 20 * 16 });
    const random = randomFrom(freshSeed());
    const texts = Array.from({ length: 5 }, () => Array.from({ length: 150 }, () => Math.floor(random() * 4096)));
    const together = await Promise.all(texts.map((text) => tight.score(text, { topLogprobs: 2 })));
    for (const [i, text] of texts.entries()) expect(together[i]).toEqual(await model.score(text, { topLogprobs: 2 }));
    expect(tight.kv.free).toBe(tight.kv.size);
  });

  test('are not given unasked', async () => {
    expect((await run({ maxTokens: 3 })).logprobs).toEqual([]);
  });

  test('of a text can be aborted, and of one that is too long are refused', async () => {
    const text = Array.from({ length: 2000 }, (_, i) => i);
    const control = new AbortController();
    const work = model.score(text, { signal: control.signal });
    setTimeout(() => control.abort(), 20);
    await expect(work).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(model.score(new Array(2049).fill(7))).rejects.toMatchObject({ code: 'CONTEXT_FULL', field: 'prompt' });
    await expect(model.score(text, { topLogprobs: 21 })).rejects.toMatchObject({ field: 'topLogprobs' });
  });
});

describe('greedy answers follow the formula of', () => {
  /** What float64 makes of the logits, token by token. */
  async function expectGreedy(options: GenerateOptions, change: (logits: Float64Array, answer: number[]) => void) {
    const { ids } = await run({ maxTokens: 24, ...options });
    const answer: number[] = [];
    for (const id of ids) {
      const logits = Float64Array.from((await logitsOf(model, [...promptIds(), ...answer])).at(-1)!);
      change(logits, answer);
      expect(argmax(logits)).toBe(id);
      answer.push(id);
    }
    expect(ids).not.toEqual((await run({ maxTokens: 24 })).ids);
  }

  test('presence and frequency penalties', async () => {
    await expectGreedy({ presencePenalty: 1.5, frequencyPenalty: 0.5 }, (logits, answer) => {
      const counts = new Map<number, number>();
      for (const id of answer) counts.set(id, (counts.get(id) ?? 0) + 1);
      for (const [id, count] of counts) logits[id]! -= 1.5 + 0.5 * count;
    });
  });

  test('logit bias', async () => {
    const [first, second] = (await run({ maxTokens: 2 })).ids as [number, number];
    await expectGreedy({ logitBias: { [first]: -100, [second]: 2 } }, (logits) => {
      logits[first]! -= 100;
      logits[second]! += 2;
    });
    const only = await run({ maxTokens: 5, logitBias: { 77: 100 }, temperature: 1 });
    expect(only.ids).toEqual([77, 77, 77, 77, 77]);
  });

  test('and a bias for a token that the model lacks is refused', async () => {
    await expect(run({ logitBias: { 4096: 1 } })).rejects.toMatchObject({ code: 'USAGE', field: 'logitBias' });
  });
});
