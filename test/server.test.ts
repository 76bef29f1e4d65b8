/** The server through OpenAI's own client. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { GenerateOptions, Prompt } from '../lib/index.ts';
import { type RunningServer, startServer, until } from './support/server.ts';

let server: RunningServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

const model = 'demo';
const messages = [{ role: 'user' as const, content: 'Where is the river?' }];

/** What the library gives, whole. */
async function generated(prompt: Prompt, options: GenerateOptions) {
  let text = '';
  const ids: number[] = [];
  for await (const piece of server.model.generate(prompt, options)) {
    text += piece.text;
    ids.push(...piece.ids);
  }
  return { text, ids };
}

describe('chat', () => {
  test('answers with what the library generates for the template, and counts tokens', async () => {
    const answer = await server.client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
    const { text, ids } = await generated(messages, { maxTokens: 12 });
    expect(answer).toMatchObject({ object: 'chat.completion', model });
    expect(answer.choices).toMatchObject([
      { index: 0, message: { role: 'assistant', content: text }, finish_reason: 'length' },
    ]);
    const prompt = server.model.tokenizer!.encode('User: Where is the river?\n\nAssistant:', {
      addSpecialTokens: false,
    });
    expect(answer.usage).toEqual({
      prompt_tokens: prompt.length,
      completion_tokens: ids.length,
      total_tokens: prompt.length + ids.length,
    });
  });

  test('streams the same text, then usage if asked', async () => {
    const stream = await server.client.chat.completions.create({
      model,
      messages,
      max_tokens: 12,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = '';
    const roles: unknown[] = [];
    const finishes: unknown[] = [];
    let usage: unknown;
    for await (const chunk of stream) {
      expect(chunk.object).toBe('chat.completion.chunk');
      const [choice] = chunk.choices;
      text += choice?.delta.content ?? '';
      if (choice?.delta.role !== undefined) roles.push(choice.delta.role);
      if (choice?.finish_reason) finishes.push(choice.finish_reason);
      if (chunk.usage) usage = chunk.usage;
    }
    expect(text).toBe((await generated(messages, { maxTokens: 12 })).text);
    expect(roles).toEqual(['assistant']);
    expect(finishes).toEqual(['length']);
    expect(usage).toMatchObject({ completion_tokens: 12 });
  });

  test('takes content in parts, a developer for system, and max_completion_tokens', async () => {
    const whole = await server.client.chat.completions.create({
      model,
      messages: [{ role: 'system', content: 'Be brief.' }, ...messages],
      max_completion_tokens: 6,
      temperature: 0,
    });
    const parts = await server.client.chat.completions.create({
      model,
      messages: [
        {
          role: 'developer',
          content: [
            { type: 'text', text: 'Be ' },
            { type: 'text', text: 'brief.' },
          ],
        },
        ...messages,
      ],
      max_completion_tokens: 6,
      temperature: 0,
    });
    expect(parts.choices[0]!.message).toEqual(whole.choices[0]!.message);
    expect(whole.usage!.completion_tokens).toBe(6);
  });

  test('gives n answers, the same for the same seed', async () => {
    const ask = (seed: number) =>
      server.client.chat.completions.create({ model, messages, max_tokens: 16, n: 3, seed, temperature: 1.2 });
    const [first, again, other] = await Promise.all([ask(5), ask(5), ask(6)]);
    const texts = (answer: typeof first) => answer.choices.map(({ message }) => message.content);
    expect(texts(again)).toEqual(texts(first));
    expect(new Set(texts(first)).size).toBe(3);
    expect(texts(other)).not.toEqual(texts(first));
    expect(first.choices.map(({ index }) => index)).toEqual([0, 1, 2]);
  });

  test('stops before a stop text', async () => {
    const { text } = await generated(messages, { maxTokens: 30 });
    const stop = text.slice(10, 14);
    const answer = await server.client.chat.completions.create({
      model,
      messages,
      max_tokens: 30,
      temperature: 0,
      stop,
    });
    expect(answer.choices[0]).toMatchObject({
      message: { content: text.slice(0, text.indexOf(stop)) },
      finish_reason: 'stop',
    });
  });
});

describe('completions', () => {
  test('answer texts and token ids alike, and several at once', async () => {
    const text = 'The old town';
    const ids = [...server.model.tokenizer!.encode(text)];
    const one = await server.client.completions.create({ model, prompt: text, max_tokens: 8, temperature: 0 });
    const many = await server.client.completions.create({ model, prompt: [text, text], max_tokens: 8, temperature: 0 });
    const byIds = await server.client.completions.create({ model, prompt: [ids], max_tokens: 8, temperature: 0 });
    const wanted = (await generated(text, { maxTokens: 8 })).text;
    expect(one.choices).toMatchObject([{ index: 0, text: wanted, finish_reason: 'length' }]);
    expect(many.choices.map((choice) => choice.text)).toEqual([wanted, wanted]);
    expect(byIds.choices[0]!.text).toBe(wanted);
    expect(many.usage!.prompt_tokens).toBe(2 * ids.length);
  });

  test('have 16 tokens unless the request says otherwise', async () => {
    const answer = await server.client.completions.create({ model, prompt: 'Once' });
    expect(answer.usage!.completion_tokens).toBe(16);
  });

  test('stream', async () => {
    let text = '';
    const stream = await server.client.completions.create({
      model,
      prompt: 'Once',
      max_tokens: 9,
      temperature: 0,
      stream: true,
    });
    for await (const chunk of stream) text += chunk.choices[0]!.text;
    expect(text).toBe((await generated('Once', { maxTokens: 9 })).text);
  });
});

describe('a client that goes away', () => {
  test('in a stream frees its blocks, and others go on', async () => {
    const other = server.client.completions.create({ model, prompt: 'A', max_tokens: 300 });
    const stream = await server.client.chat.completions.create({
      model,
      messages,
      max_tokens: 1500,
      stream: true,
      ignore_eos: true,
    } as never as { model: string; messages: typeof messages; stream: true });
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 5) break;
    await until(() => server.model.scheduler.load.running <= 1);
    await other;
    await until(() => server.model.kv.free === server.model.kv.size);
  });

  test('before an answer that is not streamed frees them too', async () => {
    const control = new AbortController();
    const body = { model, messages, max_tokens: 1500, ignore_eos: true } as never;
    const work = server.client.chat.completions.create(body, { signal: control.signal });
    await until(() => server.model.scheduler.load.running === 1);
    control.abort();
    await expect(work).rejects.toThrow();
    await until(() => server.model.kv.free === server.model.kv.size);
  });
});

test('models, tokens and metrics', async () => {
  const { data } = await server.client.models.list();
  expect(data).toMatchObject([{ id: model, object: 'model' }]);
  expect(await server.client.models.retrieve(model)).toMatchObject({ id: model });
  const post = async (path: string, body: object) =>
    (await server.app.inject({ method: 'POST', url: path, payload: body })).json();
  const { tokens, count } = await post('/tokenize', { prompt: 'The river' });
  expect(tokens).toEqual([...server.model.tokenizer!.encode('The river')]);
  expect(count).toBe(tokens.length);
  expect((await post('/detokenize', { tokens })).prompt).toBe(server.model.tokenizer!.decode(tokens));
  const metrics = (await server.app.inject('/metrics')).body;
  expect(metrics).toMatch(/^espalier_generation_tokens_total\{model_name="demo"\} [1-9]\d*$/m);
  expect(metrics).toMatch(/^espalier_kv_cache_usage_perc\{model_name="demo"\} 0$/m);
  for (const name of ['num_preemptions_total', 'prefix_cache_queries_total', 'prefix_cache_hits_total']) {
    expect(metrics).toMatch(new RegExp(`^espalier_${name}\\{model_name="demo"\\} \\d+$`, 'm'));
  }
  const { paths } = (await server.app.inject('/openapi.json')).json();
  expect(Object.keys(paths)).toContain('/v1/chat/completions');
});
