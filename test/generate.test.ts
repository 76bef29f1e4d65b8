/** Generation: what is drawn, what is streamed, how it ends, and what it leaves behind. */
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { type GenerateOptions, Model, type Prompt } from '../lib/index.ts';
import type { NativeSample } from '../lib/native.ts';
import { demoModel, familyFolder } from './support/models.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { collectIds, Feed, freshSeed, logitsOf, randomFrom, runBatch } from './support/steps.ts';

let model: Model;
beforeAll(async () => {
  model = await Model.load(demoModel, { threads: 2 });
  return () => model.dispose();
});

const prompt = 'The history of the city begins';

async function run(text: Prompt, options: GenerateOptions, on: Model = model) {
  const pieces = [];
  for await (const piece of on.generate(text, options)) pieces.push(piece);
  return {
    ids: pieces.flatMap(({ ids }) => ids),
    text: pieces.map(({ text }) => text).join(''),
    pieces,
    finishReason: pieces.at(-1)?.finishReason,
  };
}

/** Index of the largest, the first among equals. */
function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}

/** Number of steps that a function makes the model run. */
async function countSteps<T>(on: Model, work: () => Promise<T>): Promise<{ result: T; steps: number }> {
  const step = on.step;
  let steps = 0;
  on.step = (...args) => {
    steps++;
    return step.apply(on, args);
  };
  try {
    return { result: await work(), steps };
  } finally {
    on.step = step;
  }
}

describe('what is drawn', () => {
  test('greedy is temperature 0 and top-k 1, and the argmax of the logits', async () => {
    const greedy = await run(prompt, { maxTokens: 24 });
    expect((await run(prompt, { maxTokens: 24, temperature: 0, seed: 9 })).ids).toEqual(greedy.ids);
    expect((await run(prompt, { maxTokens: 24, temperature: 1.7, topK: 1, seed: 9 })).ids).toEqual(greedy.ids);
    const ids = [...model.tokenizer!.encode(prompt)];
    for (const id of greedy.ids) {
      expect(argmax((await logitsOf(model, ids)).at(-1)!)).toBe(id);
      ids.push(id);
    }
  });

  test('a seed gives the same tokens again, another one others', async () => {
    const draw = async (seed: number | bigint) =>
      (await run(prompt, { maxTokens: 32, temperature: 1, seed })).ids.join();
    const seeds = [0, 1, 2, 2 ** 40, 2n ** 64n - 1n];
    const texts = [];
    for (const seed of seeds) texts.push(await draw(seed));
    expect(new Set(texts).size).toBe(seeds.length);
    for (const [i, seed] of seeds.entries()) expect(await draw(seed)).toBe(texts[i]);
    expect(await draw(2n ** 40n)).toBe(texts[3]);
  });

  /** Probabilities in float64, by the definitions of the options. */
  function distribution(logits: Float32Array, options: Partial<NativeSample>): Map<number, number> {
    const { temperature = 1, topK = 0, topP = 1, minP = 0 } = options;
    const scaled = Array.from(logits, (logit) => logit / temperature);
    const highest = Math.max(...scaled);
    const weights = scaled.map((value) => Math.exp(value - highest));
    const sum = weights.reduce((a, b) => a + b, 0);
    let ranked = weights.map((weight, id) => ({ id, p: weight / sum })).sort((a, b) => b.p - a.p || a.id - b.id);
    if (topK > 0) ranked = ranked.slice(0, topK);
    const kept = ranked.reduce((total, { p }) => total + p, 0);
    let reached = 0;
    ranked = ranked.filter(({ p }, rank) => {
      const wanted = rank === 0 || reached < topP * kept;
      reached += p;
      return wanted;
    });
    ranked = ranked.filter(({ p }) => p >= minP * ranked[0]!.p);
    const total = ranked.reduce((a, { p }) => a + p, 0);
    return new Map(ranked.map(({ id, p }) => [id, p / total]));
  }

  const cases: [string, Partial<NativeSample>][] = [
    ['temperature 1', {}],
    ['temperature 0.6', { temperature: 0.6 }],
    ['temperature 1.5, top-k 40', { temperature: 1.5, topK: 40 }],
    ['top-p 0.8', { topP: 0.8 }],
    ['top-p 0.01', { topP: 0.01 }],
    ['min-p 0.05', { minP: 0.05 }],
    ['all together', { temperature: 1.2, topK: 100, topP: 0.9, minP: 0.02 }],
  ];
  test.each(cases)('draws have the distribution that the options define: %s', async (_name, options) => {
    const seed = BigInt(freshSeed());
    const ids = [...model.tokenizer!.encode(prompt)];
    const wanted = distribution((await logitsOf(model, ids)).at(-1)!, options);
    const draws = 6000;
    const feed = new Feed(model);
    const { blocks } = feed.slice(ids);
    const base = { row: ids.length - 1, temperature: 1, topK: 0, topP: 1, minP: 0, seed };
    const result = await model.step({
      tokens: Int32Array.from(ids),
      slices: [{ count: ids.length, position: 0, blocks }],
      samples: Array.from({ length: draws }, (_, step) => ({ ...base, ...options, step })),
    });
    feed.release();
    const counts = new Map<number, number>();
    for (const id of result.samples) counts.set(id, (counts.get(id) ?? 0) + 1);
    for (const id of counts.keys()) expect(wanted.has(id), `token ${id} was cut off`).toBe(true);
    // Pearson's statistic; rare tokens are counted together.
    let [statistic, bins, restWanted, restFound] = [0, 0, 0, 0];
    for (const [id, p] of wanted) {
      const [expected, found] = [p * draws, counts.get(id) ?? 0];
      if (expected < 8) {
        restWanted += expected;
        restFound += found;
        continue;
      }
      statistic += (found - expected) ** 2 / expected;
      bins++;
    }
    if (restWanted > 8) {
      statistic += (restFound - restWanted) ** 2 / restWanted;
      bins++;
    }
    expect(bins).toBeGreaterThan(0);
    expect(statistic).toBeLessThan(bins + 6 * Math.sqrt(2 * bins) + 10);
  });

  test('the repetition penalty is that of Keskar et al. over prompt and answer', async () => {
    const penalty = 1.4;
    const found = (await run(prompt, { maxTokens: 24, repetitionPenalty: penalty })).ids;
    const ids = [...model.tokenizer!.encode(prompt)];
    for (const id of found) {
      const logits = (await logitsOf(model, ids)).at(-1)!;
      for (const seen of new Set(ids)) {
        const logit = logits[seen]!;
        logits[seen] =
          logit > 0 ? Math.fround(logit / Math.fround(penalty)) : Math.fround(logit * Math.fround(penalty));
      }
      expect(argmax(logits)).toBe(id);
      ids.push(id);
    }
    expect(found).not.toEqual((await run(prompt, { maxTokens: 24 })).ids);
  });

  test('several at the same time get what each gets alone', async () => {
    const prompts = [prompt, 'She opened the door and', 'A', 'In 1984,', prompt];
    const options = (i: number): GenerateOptions =>
      i % 2 === 0 ? { maxTokens: 20 } : { maxTokens: 20, temperature: 0.9, seed: i };
    const alone = [];
    for (const [i, text] of prompts.entries()) alone.push((await run(text, options(i))).ids);
    const together = await Promise.all(prompts.map(async (text, i) => (await run(text, options(i))).ids));
    expect(together).toEqual(alone);
    expect(model.kv.free).toBe(model.kv.size);
  });
});

describe('what is streamed', () => {
  test('the pieces joined are what decoding gives, also for tokens that split characters', async () => {
    const seed = freshSeed();
    for (const temperature of [0, 1, 3]) {
      const { ids, text } = await run(prompt, { maxTokens: 150, ignoreEos: true, temperature, seed });
      expect(ids.length).toBe(150);
      expect(text).toBe(model.tokenizer!.decode(ids, { skipSpecialTokens: true }));
    }
  });

  test('the text ends before a stop string, wherever tokens cut it', async () => {
    const whole = await run(prompt, { maxTokens: 40 });
    const ends: number[] = [];
    for (const { text } of whole.pieces) ends.push((ends.at(-1) ?? 0) + text.length);
    let across = 0;
    for (let at = 2; at + 7 < whole.text.length; at += 5) {
      const stop = whole.text.slice(at, at + 7);
      const first = whole.text.indexOf(stop);
      const found = await run(prompt, { maxTokens: 40, stop: ['never there', stop] });
      expect(found.text).toBe(whole.text.slice(0, first));
      expect(found.finishReason).toBe('stop');
      if (ends.some((end) => end > first && end < first + stop.length)) across++;
    }
    expect(across).toBeGreaterThan(5);
  });

  test('every piece has ids, and only the last says why it ended', async () => {
    const { pieces, finishReason } = await run(prompt, { maxTokens: 12 });
    expect(pieces.map(({ ids }) => ids.length)).toEqual(new Array(12).fill(1));
    expect(pieces.slice(0, -1).every((piece) => piece.finishReason === undefined)).toBe(true);
    expect(finishReason).toBe('length');
  });

  test('an end token ends the text unless it is to be ignored', async () => {
    // Whatever comes fourth is made the end token of a copy.
    const { ids } = await run(prompt, { maxTokens: 12 });
    const end = ids.findIndex((id, i) => i >= 3 && ids.indexOf(id) === i);
    const folder = join(temporaryFolder(), 'model');
    cpSync(demoModel, folder, { recursive: true });
    for (const name of ['config.json', 'generation_config.json']) {
      const config = JSON.parse(readFileSync(join(folder, name), 'utf8'));
      writeFileSync(join(folder, name), JSON.stringify({ ...config, eos_token_id: [0, ids[end]] }));
    }
    await using other = await Model.load(folder);
    const found = await run(prompt, { maxTokens: 12 }, other);
    expect(found.ids).toEqual(ids.slice(0, end + 1));
    expect(found.finishReason).toBe('stop');
    expect((await run(prompt, { maxTokens: 12, ignoreEos: true }, other)).ids).toEqual(ids);
  });
});

describe('how it stops', () => {
  /** Prompts of different `factor` do not begin alike. */
  const long = (factor = 37) => Array.from({ length: 1800 }, (_, i) => (i * factor + factor) % 4096);

  test('an abort ends it within a step and frees its cache', async () => {
    const control = new AbortController();
    const seen: number[] = [];
    const { steps } = await countSteps(model, async () => {
      const work = (async () => {
        for await (const { ids } of model.generate(prompt, { signal: control.signal, maxTokens: 100 })) {
          seen.push(...ids);
          if (seen.length === 5) control.abort(new Error('enough'));
        }
      })();
      await expect(work).rejects.toMatchObject({ code: 'ABORTED', cause: { message: 'enough' } });
    });
    expect(seen.length).toBe(5);
    expect(steps).toBeLessThanOrEqual(6);
    expect(model.kv.free).toBe(model.kv.size);
  });

  test('an abort during a long prompt does not wait for its end', async () => {
    const whole = await countSteps(model, () => run(long(), { maxTokens: 1 }));
    expect(whole.steps).toBe(4);
    const control = new AbortController();
    const step = model.step;
    const { steps } = await countSteps(model, async () => {
      const counted = model.step;
      model.step = (...args) => {
        const result = counted.apply(model, args);
        if (args[0].slices[0]!.position > 0) control.abort();
        return result;
      };
      const work = run(long(41), { maxTokens: 1, signal: control.signal });
      await expect(work).rejects.toMatchObject({ code: 'ABORTED' });
    });
    model.step = step;
    expect(steps).toBe(2);
    expect(model.kv.free).toBe(model.kv.size);
    await expect(run(prompt, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
    // The engine is as it was.
    expect((await run(long(), { maxTokens: 1 })).ids).toEqual(whole.result.ids);
  });

  test('breaking out of the loop frees the cache', async () => {
    for await (const _ of model.generate(long(), { maxTokens: 50 })) {
      expect(model.kv.free).toBeLessThan(model.kv.size - 100);
      break;
    }
    expect(model.kv.free).toBe(model.kv.size);
  });

  test('a prompt that fills the context is refused, an answer ends where it does', async () => {
    const context = model.spec.maxPositions;
    const ids = Array.from({ length: context }, (_, i) => i % 4096);
    await expect(run(ids, {})).rejects.toMatchObject({
      code: 'CONTEXT_FULL',
      message: expect.stringContaining('2048'),
    });
    const rest = await run(ids.slice(0, context - 3), { maxTokens: 100, ignoreEos: true });
    expect(rest.ids.length).toBe(3);
    expect(rest.finishReason).toBe('length');
  });

  test('a cache that is too small says so, and stays usable', async () => {
    await using tight = await Model.load(demoModel, { kvTokens: 64 });
    const failing = run(long().slice(0, 100), {}, tight);
    await expect(failing).rejects.toMatchObject({ code: 'CONTEXT_FULL', message: expect.stringContaining('kvTokens') });
    const growing = run(long().slice(0, 60), { maxTokens: 20, ignoreEos: true }, tight);
    await expect(growing).rejects.toMatchObject({ code: 'CONTEXT_FULL' });
    expect(tight.kv.free).toBe(tight.kv.size);
    expect((await run(prompt, { maxTokens: 5 }, tight)).ids).toEqual((await run(prompt, { maxTokens: 5 })).ids);
  });

  test('a disposed model refuses, also in the middle of a text', async () => {
    const other = await Model.load(demoModel);
    const pieces = other.generate(prompt, { maxTokens: 50 });
    await pieces.next();
    other.dispose();
    await expect(pieces.next()).rejects.toMatchObject({ code: 'DISPOSED' });
    await expect(run(prompt, {}, other)).rejects.toMatchObject({ code: 'DISPOSED' });
    other.dispose();
  });

  test('disposing while a step runs lets the step end', async () => {
    const other = await Model.load(demoModel);
    const step = runBatch(other, [new Feed(other).slice(long())]);
    other.dispose();
    expect((await step)[0]!.length).toBe(1800);
  });
});

describe('prompts', () => {
  test('are texts, ids of any kind, or nothing at all', async () => {
    const ids = model.tokenizer!.encode(prompt);
    const wanted = (await run(prompt, { maxTokens: 6 })).ids;
    expect((await run(ids, { maxTokens: 6 })).ids).toEqual(wanted);
    expect((await run([...ids], { maxTokens: 6 })).ids).toEqual(wanted);
    const start = model.spec.bosTokenId!;
    const options = { maxTokens: 6, temperature: 1, ignoreEos: true };
    expect((await run('', options)).ids).toEqual((await run([start], options)).ids);
    expect((await run([], options)).ids).toEqual((await run([start], options)).ids);
  });

  test.each([[[4096]], [[1, -1]], [[1.5]], [[Number.NaN]]])(
    'refuse ids that the model does not know: %o',
    async (ids) => {
      await expect(run(ids, {})).rejects.toMatchObject({ code: 'USAGE', field: 'prompt' });
    },
  );

  test('of a chat are rendered by the template of the model', async () => {
    const messages = [
      { role: 'user', content: 'Who founded the city?' },
      { role: 'assistant', content: 'Nobody.' },
    ];
    const folder = join(temporaryFolder(), 'model');
    cpSync(demoModel, folder, { recursive: true });
    rmSync(join(folder, 'chat_template.jinja'));
    await using bare = await Model.load(folder);
    await expect(run(messages, {}, bare)).rejects.toMatchObject({ code: 'TOKENIZER' });
    const template =
      '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}';
    const path = join(folder, 'tokenizer_config.json');
    const config = JSON.parse(readFileSync(path, 'utf8'));
    writeFileSync(path, JSON.stringify({ ...config, chat_template: template }));
    await using chat = await Model.load(folder);
    const text = 'user: Who founded the city?\nassistant: Nobody.\nassistant:';
    const ids = chat.tokenizer!.encode(text, { addSpecialTokens: false });
    expect((await run(messages, { maxTokens: 8 }, chat)).ids).toEqual((await run(ids, { maxTokens: 8 })).ids);
  });

  test('and answers are ids where a model has no tokenizer', async () => {
    await using bare = await Model.load(join(familyFolder, 'mixtral-window'));
    expect(bare.tokenizer).toBeUndefined();
    const random = randomFrom(freshSeed());
    const ids = Array.from({ length: 9 }, () => Math.floor(random() * bare.spec.vocabularySize));
    const found = await run(ids, { maxTokens: 7, ignoreEos: true }, bare);
    expect(found.text).toBe('');
    expect(found.ids.length).toBe(7);
    expect(await collectIds(bare.generate(ids, { maxTokens: 7, ignoreEos: true }))).toEqual(found.ids);
    await expect(run('text', {}, bare)).rejects.toMatchObject({ code: 'TOKENIZER' });
    await expect(run(ids, { stop: 'x' }, bare)).rejects.toMatchObject({ code: 'TOKENIZER' });
  });

  test('options are checked before anything runs', async () => {
    const { steps } = await countSteps(model, async () => {
      await expect(run(prompt, { topP: 0 })).rejects.toMatchObject({ code: 'USAGE', field: 'topP' });
      await expect(run(prompt, { tempreature: 1 } as never)).rejects.toMatchObject({ code: 'USAGE' });
    });
    expect(steps).toBe(0);
  });
});
