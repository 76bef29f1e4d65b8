/** Answers held to a form: JSON, schemas, regular expressions, over each kind of vocabulary. */
import { beforeAll, describe, expect, test } from 'vitest';
import { Grammars } from '../lib/grammar/grammars.ts';
import { type AnswerFormat, type GenerateOptions, Model, Tokenizer } from '../lib/index.ts';
import { demoModel } from './support/models.ts';
import { freshSeed, logitsOf, randomFrom } from './support/steps.ts';
import { folderWith, sampleText, wordMarkTokenizer } from './support/tokenizers.ts';

let model: Model;
beforeAll(async () => {
  model = await Model.load(demoModel, { threads: 2 });
  return () => model.dispose();
});

async function run(format: AnswerFormat | undefined, options: GenerateOptions = {}) {
  const ids: number[] = [];
  let [text, finishReason] = ['', ''];
  for await (const piece of model.generate('The list:', { maxTokens: 800, format, ...options })) {
    ids.push(...piece.ids);
    text += piece.text;
    finishReason = piece.finishReason ?? '';
  }
  return { ids, text, finishReason };
}

const schema = {
  type: 'object',
  properties: {
    kind: { enum: ['tree', 'wall'] },
    height: { type: 'integer', minimum: 0, maximum: 99 },
    names: { type: 'array', items: { type: 'string', maxLength: 12 }, minItems: 1, maxItems: 3 },
    espaliered: { type: 'boolean' },
  },
  required: ['kind', 'height', 'names', 'espaliered'],
  additionalProperties: false,
};

describe('an answer', () => {
  test('of a schema is what the schema says, whatever the model would rather say', async () => {
    const seed = freshSeed();
    for (const temperature of [0, 1, 3]) {
      const { text, finishReason } = await run({ type: 'json_schema', schema }, { temperature, seed });
      expect(finishReason).toBe('stop');
      const value = JSON.parse(text);
      expect(Object.keys(value)).toEqual(['kind', 'height', 'names', 'espaliered']);
      expect(['tree', 'wall']).toContain(value.kind);
      expect(value.height === Math.floor(value.height) && value.height >= 0 && value.height <= 99).toBe(true);
      expect(value.names.length >= 1 && value.names.length <= 3).toBe(true);
      for (const name of value.names) expect([...name].length).toBeLessThanOrEqual(12);
      expect(typeof value.espaliered).toBe('boolean');
    }
  });

  test('of a regular expression matches it, characters of several tokens included', async () => {
    for (const pattern of ['[a-z]{3,5}@(foo|bar)\\.com', '(🍎|äö){2,3}!', '^\\d{4}-\\d{2}$', '(yes|no)']) {
      const { text, finishReason } = await run({ type: 'regex', pattern }, { temperature: 1, seed: freshSeed() });
      expect(finishReason).toBe('stop');
      expect(text).toMatch(new RegExp(`^(?:${pattern})$`, 'u'));
    }
  });

  test('of a grammar is a text of it', async () => {
    const grammar = 'root ::= sum "="\nsum ::= term ("+" term){1,3}\nterm ::= [1-9] | "(" sum ")"';
    const seed = freshSeed();
    const { text, finishReason } = await run(
      { type: 'grammar', grammar },
      { temperature: 1, seed, logitBias: { 0: 9 } },
    );
    if (finishReason === 'stop') expect(text.endsWith('=')).toBe(true);
    // Brackets that are closed come away from the inside out.
    let rest = text.replace(/=$/, '');
    for (let before = ''; before !== rest; ) {
      before = rest;
      rest = rest.replace(/\([1-9](\+[1-9]){1,3}\)/g, '1');
    }
    expect(rest).toMatch(finishReason === 'stop' ? /^[1-9](\+[1-9]){1,3}$/ : /^[1-9+(]*$/);
  });

  test('of a grammar whose rule begins with itself is one', async () => {
    const { text } = await run(
      { type: 'grammar', grammar: 'root ::= root "ab" | "x"' },
      { logitBias: { 0: 2 }, maxTokens: 60 },
    );
    expect(text).toMatch(/^x(ab)*a?$/);
  });

  test('of JSON begins an object, and its end is allowed no sooner than it closes', async () => {
    const { text, finishReason } = await run({ type: 'json_object' }, { temperature: 1, seed: freshSeed() });
    expect(text.startsWith('{')).toBe(true);
    if (finishReason === 'stop') expect(typeof JSON.parse(text)).toBe('object');
    const whole = await run({ type: 'json_object' }, { logitBias: { 0: 100 }, ignoreEos: true });
    expect([typeof JSON.parse(whole.text), whole.finishReason]).toEqual(['object', 'stop']);
  });

  test('is drawn from what the mask leaves, as the logits say', async () => {
    const words = ['river', 'wall', 'tree'];
    const { ids } = await run({ type: 'regex', pattern: words.join('|') });
    const tokenizer = model.tokenizer!;
    const text = [...tokenizer.encode('The list:')];
    let written = '';
    for (const id of ids) {
      const logits = (await logitsOf(model, text)).at(-1)!;
      const fits = (token: number) =>
        token === 0
          ? words.includes(written)
          : tokenizer.decode([token]) !== '' && words.some((w) => w.startsWith(written + tokenizer.decode([token])));
      const allowed = Array.from(logits.keys()).filter(fits);
      expect(id).toBe(allowed.reduce((best, token) => (logits[token]! > logits[best]! ? token : best)));
      text.push(id);
      written += id === 0 ? '' : tokenizer.decode([id]);
    }
    expect(words).toContain(written);
  });

  test('is the same in a batch of others with and without a form', async () => {
    const formats: (AnswerFormat | undefined)[] = [
      { type: 'json_schema', schema },
      undefined,
      { type: 'regex', pattern: '[a-z ]{40}' },
      undefined,
      { type: 'json_object' },
    ];
    const options = { maxTokens: 40, temperature: 0.8, seed: 11 };
    const alone = [];
    for (const format of formats) alone.push(await run(format, options));
    expect(await Promise.all(formats.map((format) => run(format, options)))).toEqual(alone);
    expect(model.kv.free).toBe(model.kv.size);
  });
});

describe('a grammar that', () => {
  /** Runs with matchers whose second mask is `second`, beside answers without a form. */
  async function beside(second: Promise<Int32Array>, signal?: AbortSignal) {
    const { start } = model.grammars;
    let ended = 0;
    model.grammars.start = async () => ({
      next: (token) => (token === undefined ? Promise.resolve(new Int32Array(128).fill(-1)) : second),
      end: () => ended++,
    });
    const held = run({ type: 'json_object' }, { signal });
    const outcome = held.then(
      () => 'an answer',
      (error: Error) => error.message,
    );
    for (let i = 0; i < 3; i++) expect((await run(undefined, { maxTokens: 20, ignoreEos: true })).ids.length).toBe(20);
    return { outcome, ended: () => ended, restore: () => Object.assign(model.grammars, { start }) };
  }

  test('does not answer holds nobody else up, and its answer can be stopped', async () => {
    const control = new AbortController();
    const { outcome, ended, restore } = await beside(new Promise(() => {}), control.signal);
    control.abort();
    expect(await outcome).toBe('stopped on request');
    restore();
    expect([ended(), model.kv.free]).toEqual([1, model.kv.size]);
  });

  test('fails ends its own answer only', async () => {
    const failure = Promise.reject<Int32Array>(new Error('the grammar failed'));
    failure.catch(() => {});
    const { outcome, ended, restore } = await beside(failure);
    expect(await outcome).toBe('the grammar failed');
    restore();
    expect([ended(), model.kv.free]).toEqual([1, model.kv.size]);
  });

  test('leaves no token is an error and not a token that does not fit', async () => {
    const size = model.tokenizer!.vocabularySize;
    // A vocabulary without the byte that the form wants.
    const poor = Object.create(model.tokenizer!, {
      isSpecial: { value: (id: number) => model.tokenizer!.decode([id]).includes('z') },
      bytes: { value: (id: number) => model.tokenizer!.bytes(id) },
      piece: { value: (id: number) => model.tokenizer!.piece(id) },
    }) as Tokenizer;
    const grammars = new Grammars(poor, [0], size);
    const matcher = await grammars.start({ type: 'regex', pattern: 'z' });
    await expect(matcher.next()).rejects.toMatchObject({ code: 'TOKENIZER', field: 'format' });
    matcher.end();
    grammars.dispose();
  });
});

describe('the thread of grammars is lost', () => {
  const bits = (mask: Int32Array) => [...mask].join();

  test('over one that runs on: its own answers end, others go on where they were', async () => {
    const own = new Grammars(model.tokenizer, [0], 4096);
    const alone = new Grammars(model.tokenizer, [0], 4096);
    const format: AnswerFormat = { type: 'regex', pattern: '[a-z]{9}[0-9]{4}' };
    // A step of it takes seconds.
    const endless: AnswerFormat = { type: 'regex', pattern: '((.?){50}.?){50}' };
    const [one, reference] = [await own.start(format), await alone.start(format)];
    const [slow, same] = [await own.start(endless), await own.start(endless)];
    await one.next();
    await reference.next();
    const tokens = [...'rivers'].map((letter) => model.tokenizer!.encode(letter, { addSpecialTokens: false })[0]!);
    for (const token of tokens.slice(0, 3)) expect(bits(await one.next(token))).toBe(bits(await reference.next(token)));
    const failing = slow.next();
    const going = one.next(tokens[3]);
    await expect(failing).rejects.toThrow('takes more than 1000 ms');
    expect(bits(await going)).toBe(bits(await reference.next(tokens[3])));
    await expect(same.next()).rejects.toThrow('takes more than 1000 ms');
    for (const token of tokens.slice(4)) expect(bits(await one.next(token))).toBe(bits(await reference.next(token)));
    const fresh = await own.start(format);
    expect(bits(await fresh.next())).toBe(bits(await (await alone.start(format)).next()));
    own.dispose();
    alone.dispose();
  });

  test('over one that is not understood: others that are read at the same time are', async () => {
    const own = new Grammars(model.tokenizer, [0], 4096);
    const start = (pattern: string) => own.start({ type: 'regex', pattern });
    const outcomes = await Promise.allSettled([start('a'), start('(a'), start('b'), start('[c')]);
    expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled', 'rejected']);
    own.dispose();
  });

  test('because the model is disposed: nothing is asked for again', async () => {
    const own = new Grammars(model.tokenizer, [0], 4096);
    const matcher = await own.start({ type: 'json_object' });
    own.dispose();
    await expect(matcher.next()).rejects.toMatchObject({ code: 'INTERNAL' });
  });
});

describe('a form that cannot be kept to is refused', () => {
  let deep: object = { type: 'string' };
  for (let i = 0; i < 100; i++) deep = { type: 'array', items: deep };
  const wide = Object.fromEntries(Array.from({ length: 2000 }, (_, i) => [`p${i}`, { type: 'integer' }]));
  const ofSchema = (value: unknown): AnswerFormat => ({ type: 'json_schema', schema: value as object });
  test.each<[string, AnswerFormat, RegExp]>([
    ['a type that there is not', ofSchema({ type: 'foo' }), /Unsupported type "foo"/],
    ['no schema', ofSchema(5), /not a schema/],
    ['a keyword', ofSchema({ properties: { a: { not: { type: 'string' } } } }), /schema\.properties\.a has "not"/],
    ['parts that the library passes over', ofSchema({ allOf: [{ type: 'object' }, { minProperties: 1 }] }), /allOf/],
    ['another document', ofSchema({ $ref: 'http://127.0.0.1/x.json' }), /nothing is fetched/],
    ['a definition that is missing', ofSchema({ $ref: '#/$defs/a' }), /format/],
    ['depth', ofSchema(deep), /nested more than 64/],
    ['width', ofSchema({ type: 'object', properties: wide }), /takes more than 2000 ms/],
    ['a pattern', ofSchema({ type: 'string', pattern: '((' }), /parenthesis/],
    ['an expression', { type: 'regex', pattern: '((' }, /parenthesis/],
    ['a lookahead', { type: 'regex', pattern: '(?=a)b' }, /Lookahead/],
    ['nesting', { type: 'regex', pattern: `${'('.repeat(20_000)}a${')'.repeat(20_000)}` }, /format/],
    ['its size', { type: 'regex', pattern: 'a'.repeat(70_000) }, /65536/],
    ['a type', { type: 'poem' } as never, /no type "poem"/],
  ])('%s', async (_, format, message) => {
    await expect(run(format)).rejects.toMatchObject({ code: 'USAGE', field: 'format', message });
    expect(model.kv.free).toBe(model.kv.size);
  });

  test('and others go on meanwhile', async () => {
    const good = run({ type: 'json_schema', schema }, { temperature: 1 });
    await Promise.allSettled(['((', '(a', '(?=a)'].map((pattern) => run({ type: 'regex', pattern })));
    expect(Object.keys(JSON.parse((await good).text)).length).toBe(4);
  });

  test('as is any for a model without an end token', async () => {
    const grammars = new Grammars(model.tokenizer, [], 4096);
    await expect(grammars.start({ type: 'json_object' })).rejects.toMatchObject({ code: 'TOKENIZER' });
    await expect(new Grammars(undefined, [0], 4096).start({ type: 'json_object' })).rejects.toMatchObject({
      code: 'TOKENIZER',
    });
  });
});

test('masks of a SentencePiece vocabulary allow what its tokens decode to, byte pieces included', async () => {
  const folder = folderWith({ 'tokenizer.json': wordMarkTokenizer(sampleText, 120) });
  const tokenizer = await Tokenizer.load(folder);
  const size = tokenizer.vocabularySize + 3;
  const grammars = new Grammars(tokenizer, [2], size);
  const random = randomFrom(freshSeed());
  const pattern = '(the |tree ?|🍎|[a-c]x){3,6}';
  const decoded = (ids: number[]) => Buffer.concat(ids.map((id) => tokenizer.bytes(id)!));
  for (let round = 0; round < 8; round++) {
    const matcher = await grammars.start({ type: 'regex', pattern });
    const ids: number[] = [];
    let mask = await matcher.next();
    for (;;) {
      const allowed = Array.from({ length: size }, (_, id) => id).filter((id) => (mask[id >> 5]! >>> (id & 31)) & 1);
      expect(allowed.some((id) => id >= tokenizer.vocabularySize || id < 2)).toBe(false);
      const id = allowed[Math.floor(random() * allowed.length)]!;
      if (id === 2) break;
      ids.push(id);
      mask = await matcher.next(id);
    }
    matcher.end();
    const text = decoded(ids).toString();
    expect(text).toMatch(new RegExp(`^(?:${pattern})$`, 'u'));
    // What is spelled by bytes is also what the tokenizer decodes, less the space that it takes from the beginning.
    expect(tokenizer.decode(ids)).toBe(text.replace(/^ /, ''));
  }
  grammars.dispose();
});

test('the bytes of every token of a vocabulary are those that it decodes to', () => {
  const tokenizer = model.tokenizer!;
  for (let id = 1; id < 4096; id++) {
    expect(Buffer.from(tokenizer.bytes(id)!).toString()).toBe(tokenizer.decode([id]));
  }
  expect(tokenizer.bytes(4096)).toBeUndefined();
});
