/** Requests that a server refuses, and how it stops. */
import { request } from 'node:http';
import type OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { z } from 'zod';
import type { chatRequest, completionRequest } from '../lib/server/schemas.ts';
import { generatedTokens, type RunningServer, startServer, until } from './support/server.ts';

let server: RunningServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

/** Of the parameters that OpenAI's client knows each is either in the schemas, or one of these: the compiler sees to it. */
type Refused<Known, Schema extends z.ZodType> = Record<Exclude<keyof Known, keyof z.infer<Schema>>, unknown>;
const refusedInChats: Refused<OpenAI.ChatCompletionCreateParams, typeof chatRequest> = {
  audio: { format: 'wav', voice: 'ash' },
  function_call: 'auto',
  functions: [{ name: 'f' }],
  modalities: ['audio'],
  prediction: { type: 'content', content: 'x' },
  reasoning_effort: 'low',
  verbosity: 'low',
  web_search_options: {},
};
const refusedInCompletions: Refused<OpenAI.CompletionCreateParams, typeof completionRequest> = {};

const messages = [{ role: 'user', content: 'Hello' }];
const chat = { model: 'demo', messages };
const text = { model: 'demo', prompt: 'Hello' };

async function post(url: string, payload: object | string, headers: Record<string, string> = {}) {
  const type = typeof payload === 'string' ? { 'content-type': 'application/json' } : {};
  const answer = await server.app.inject({ method: 'POST', url, payload, headers: { ...type, ...headers } });
  return { status: answer.statusCode, error: answer.json().error };
}

describe('a request is refused with the parameter named', () => {
  test.each<[string, object, string]>([
    ['n', { ...chat, n: 0 }, 'n'],
    ['n', { ...chat, n: 1e9 }, 'n'],
    ['n', { ...chat, n: 1.5 }, 'n'],
    ['n', { ...chat, n: '3' }, 'n'],
    ['max_tokens', { ...chat, max_tokens: 0 }, 'max_tokens'],
    ['max_tokens', { ...chat, max_tokens: 1e12 }, 'max_tokens'],
    ['max_tokens past the context', { ...chat, max_tokens: 2048 }, 'max_tokens'],
    ['temperature', { ...chat, temperature: -1 }, 'temperature'],
    ['temperature', { ...chat, temperature: 1e308 }, 'temperature'],
    ['temperature', { ...chat, temperature: '0' }, 'temperature'],
    ['top_p', { ...chat, top_p: 0 }, 'top_p'],
    ['top_k', { ...chat, top_k: -2 }, 'top_k'],
    ['min_p', { ...chat, min_p: 1 }, 'min_p'],
    ['seed', { ...chat, seed: -1 }, 'seed'],
    ['stop', { ...chat, stop: '' }, 'stop'],
    ['stop', { ...chat, stop: new Array(1e5).fill('a') }, 'stop'],
    ['messages', { ...chat, messages: [] }, 'messages'],
    ['a role', { ...chat, messages: [{ role: 'root', content: 'x' }] }, 'messages.0'],
    ['no content', { ...chat, messages: [{ role: 'user', content: null }] }, 'messages.0'],
    [
      'an image',
      {
        ...chat,
        messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'file:///etc/passwd' } }] }],
      },
      'messages.0',
    ],
    ['what is not supported', { ...chat, tools: [{ type: 'function' }] }, 'tools.0.function'],
    ['what is not supported', { ...text, suffix: 'x' }, 'suffix'],
    ['stream_options without a stream', { ...chat, stream_options: { include_usage: true } }, 'stream_options'],
    ['another model', { ...chat, model: 'gpt-9' }, 'model'],
    ['no prompt', { ...text, prompt: '' }, 'prompt'],
    ['no prompts', { ...text, prompt: [] }, 'prompt'],
    ['an empty prompt', { ...text, prompt: [[]] }, 'prompt'],
    ['ids outside the vocabulary', { ...text, prompt: [4096] }, 'prompt'],
    ['negative ids', { ...text, prompt: [-1] }, 'prompt'],
    ['a long prompt', { ...text, prompt: new Array(5000).fill(7) }, 'max_tokens'],
    ['many prompts', { ...text, prompt: new Array(65).fill('a') }, 'prompt'],
  ])('%s', async (_, body, param) => {
    const { status, error } = await post('messages' in body ? '/v1/chat/completions' : '/v1/completions', body);
    expect([status, error.param]).toEqual([param === 'model' ? 404 : 400, param]);
    expect(error.message.length).toBeLessThan(500);
  });

  test.each([
    ...Object.entries(refusedInChats).map((parameter) => ['/v1/chat/completions', chat, ...parameter] as const),
    ...Object.entries(refusedInCompletions).map((parameter) => ['/v1/completions', text, ...parameter] as const),
    ['/v1/completions', text, 'suffix', 'x'] as const,
    ['/v1/completions', text, 'best_of', 2] as const,
  ])('%s lacks a parameter of OpenAI: %#', async (url, body, name, value) => {
    const { status, error } = await post(url, { ...body, [name]: value });
    expect([status, error.param]).toEqual([400, name]);
  });

  test('but not one without a meaning for the answer', async () => {
    const extra = { user: 'a', store: true, metadata: { a: 'b' }, service_tier: 'auto', prompt_cache_key: 'a' };
    const payload = { ...chat, max_tokens: 1, ...extra, safety_identifier: 'a', prompt_cache_retention: '24h' };
    expect((await server.app.inject({ method: 'POST', url: '/v1/chat/completions', payload })).statusCode).toBe(200);
  });

  test('a field that nobody knows', async () => {
    const { status, error } = await post('/v1/chat/completions', { ...chat, temprature: 1 });
    expect([status, error.param]).toEqual([400, 'temprature']);
  });

  test.each([
    ['broken JSON', '{"model":', 400],
    ['deep JSON', `${'['.repeat(1e5)}${']'.repeat(1e5)}`, 400],
    ['nothing', '', 400],
    ['too much', JSON.stringify({ ...text, prompt: 'a'.repeat(3 * 2 ** 20) }), 413],
  ])('%s', async (_, payload, wanted) => {
    const { status, error } = await post('/v1/completions', payload);
    expect(status).toBe(wanted);
    expect(error.type).toBe('invalid_request_error');
  });

  test('an encoding, a type, a path and a method that it does not know', async () => {
    expect((await post('/v1/completions', JSON.stringify(text), { 'content-type': 'text/csv' })).status).toBe(415);
    expect((await post('/nothing', {})).status).toBe(404);
    expect((await server.app.inject({ method: 'DELETE', url: '/v1/completions' })).statusCode).toBe(405);
  });

  test('and a prototype is not polluted', async () => {
    const { status } = await post('/v1/completions', '{"model":"demo","prompt":"a","__proto__":{"stream":true}}');
    expect(status).toBe(400);
    expect(({} as Record<string, unknown>).stream).toBeUndefined();
  });
});

describe('with keys', () => {
  let closed: RunningServer;
  beforeAll(async () => {
    closed = await startServer({ apiKeys: ['first', 'second'] });
  });
  afterAll(() => closed[Symbol.asyncDispose]());

  test.each(['/v1/models', '/metrics', '/tokenize', '/openapi.json', '/nothing'])('%s needs one', async (url) => {
    for (const authorization of [
      undefined,
      'Bearer',
      'Bearer ',
      'Bearer third',
      'Bearer First',
      'Basic first',
      'first',
    ]) {
      const headers = authorization === undefined ? {} : { authorization };
      const answer = await closed.app.inject({ url, headers });
      expect(answer.statusCode, String(authorization)).toBe(401);
      expect(answer.json().error.type).toBe('authentication_error');
    }
  });

  test('either opens, and health needs none', async () => {
    for (const key of ['first', 'second']) {
      const answer = await closed.app.inject({ url: '/v1/models', headers: { authorization: `Bearer ${key}` } });
      expect(answer.statusCode).toBe(200);
    }
    expect((await closed.app.inject('/health')).statusCode).toBe(200);
  });
});

test('more requests than it takes on are refused at once, and the others answered', async () => {
  await using small = await startServer({ maxRequests: 3 });
  const ask = () =>
    small.app.inject({
      method: 'POST',
      url: '/v1/completions',
      payload: { ...text, max_tokens: 40, ignore_eos: true },
    });
  const answers = await Promise.all(Array.from({ length: 30 }, ask));
  const refused = answers.filter(({ statusCode }) => statusCode === 503);
  expect(refused.length).toBe(27);
  for (const { headers, body } of refused) {
    expect(headers['retry-after']).toBe('1');
    expect(JSON.parse(body).error.code).toBe('overloaded');
  }
  expect((await ask()).statusCode).toBe(200);
  expect(small.model.kv.free).toBe(small.model.kv.size);
});

/** The events of a stream that the server ends. */
async function streamed(url: string, body: object): Promise<string[]> {
  const answer = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...body, stream: true }),
  });
  return (await answer.text()).split('\n\n').filter(Boolean);
}

describe('a server that stops', () => {
  test('refuses new requests, says so, and lets those under way end', async () => {
    const stopping = await startServer();
    const work = streamed(stopping.url, { ...text, max_tokens: 200, ignore_eos: true });
    await until(() => stopping.model.scheduler.load.running === 1);
    const drained = stopping.app.drain(20_000);
    expect((await stopping.app.inject('/health')).statusCode).toBe(503);
    const late = await stopping.app.inject({ method: 'POST', url: '/v1/completions', payload: text });
    expect(late.statusCode).toBe(503);
    expect((await work).at(-1)).toBe('data: [DONE]');
    await drained;
    stopping.model.dispose();
  });

  test('ends what takes too long with an error in the stream', async () => {
    const stopping = await startServer();
    const work = streamed(stopping.url, { ...text, max_tokens: 2000, ignore_eos: true });
    await until(async () => (await generatedTokens(stopping.app)) > 0);
    await stopping.app.drain(50);
    const last = JSON.parse((await work).at(-1)!.slice('data: '.length));
    expect(last.error).toMatchObject({ type: 'server_error' });
    expect(stopping.model.kv.free).toBe(stopping.model.kv.size);
    stopping.model.dispose();
  });
});

test('a client that does not read does not hold up the others', async () => {
  const body = JSON.stringify({ ...text, max_tokens: 1900, n: 8, ignore_eos: true, stream: true });
  const stalled = request(`${server.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'content-length': body.length },
  });
  // Its answer is never read.
  stalled.on('response', (response) => response.pause());
  stalled.on('error', () => {});
  stalled.end(body);
  await until(() => server.model.scheduler.load.running === 8);
  const answer = await server.client.completions.create({ model: 'demo', prompt: 'Once', max_tokens: 100, seed: 1 });
  expect(answer.usage!.completion_tokens).toBeGreaterThan(0);
  stalled.destroy();
  await until(() => server.model.kv.free === server.model.kv.size);
});
