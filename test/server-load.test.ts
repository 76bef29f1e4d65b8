/** Many requests at once, clients that misbehave, and a model that fails under them. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { request } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import { EspalierError, Model } from '../lib/index.ts';
import { createServer } from '../lib/server/index.ts';
import { compiledLibrary } from './support/dist.ts';
import { demoModel } from './support/models.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { generatedTokens, startServer, until } from './support/server.ts';

const long = { model: 'demo', prompt: 'Hello', max_tokens: 1800, ignore_eos: true };

function ask(url: string, body: object, signal?: AbortSignal): Promise<Response> {
  return fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...long, ...body }),
    signal: signal ?? null,
  });
}

/** The data of the events of a stream; a character that is cut is an error. */
async function eventsOf(answer: Response): Promise<string[]> {
  const text = new TextDecoder('utf-8', { fatal: true }).decode(await answer.arrayBuffer());
  return text
    .split('\n\n')
    .slice(0, -1)
    .map((event) => event.slice('data: '.length));
}

test('ten times as many requests as there is room for: those are answered, the others refused before any is done', async () => {
  await using server = await startServer({ maxRequests: 8 });
  const order: number[] = [];
  const answers = await Promise.all(
    Array.from({ length: 80 }, async () => {
      const answer = await ask(server.url, { max_tokens: 300 });
      order.push(answer.status);
      await answer.text();
      return answer;
    }),
  );
  expect(order).toEqual([...Array(72).fill(503), ...Array(8).fill(200)]);
  for (const { status, headers } of answers) expect(headers.get('retry-after')).toBe(status === 503 ? '1' : null);
  expect((await ask(server.url, { max_tokens: 1 })).status).toBe(200);
});

test('a client that goes away while it waits for the cache frees its place, and is counted', async () => {
  await using server = await startServer({ kvTokens: 1904 });
  const first = ask(server.url, {});
  // Of 119 blocks the prompt of the second needs 94.
  await until(() => server.model.kv.free < 90);
  const control = new AbortController();
  const prompt = new Array(1500).fill(7);
  const waiting = ask(server.url, { prompt, max_tokens: 100, stream: true }, control.signal);
  await until(() => server.model.scheduler.load.waiting === 1);
  control.abort();
  await expect(waiting.then((answer) => answer.text())).rejects.toThrow();
  await until(() => server.model.scheduler.load.waiting === 0);
  expect((await first).status).toBe(200);
  const metrics = (await server.app.inject('/metrics')).body;
  expect(metrics).toMatch(/^espalier_requests_cancelled_total\{.*\} 1$/m);
  expect(metrics).toMatch(/^espalier_request_success_total\{.*finished_reason="length".*\} 1$/m);
  expect(metrics).toMatch(/^espalier_request_prompt_tokens_count\{.*\} 1$/m);
  await until(() => server.model.kv.free === server.model.kv.size);
});

test('a client that stops reading is cut off, its answer not computed to the end, and others go on', async () => {
  const model = await Model.load(demoModel);
  const app = await createServer(model, { stallTimeout: 300 });
  onTestFinished(async () => {
    await app.close();
    model.dispose();
  });
  // What a socket of this kind holds is bounded by the system to a fraction of the answer.
  const socketPath = join(temporaryFolder(), 'server');
  await app.listen({ path: socketPath });
  const send = (body: object) => {
    const headers = { 'content-type': 'application/json' };
    const sent = request({ socketPath, path: '/v1/completions', method: 'POST', headers });
    sent.end(JSON.stringify({ ...long, ...body }));
    return sent;
  };
  const stalled = send({ n: 8, stream: true });
  const [response] = await once(stalled, 'response');
  response.pause();
  const cut = once(response, 'error');
  const other = send({ max_tokens: 1000, stream: true });
  const [read] = await once(other, 'response');
  let text = '';
  for await (const chunk of read) text += chunk;
  expect(text.endsWith('data: [DONE]\n\n')).toBe(true);
  await until(() => model.kv.free === model.kv.size);
  response.resume();
  await cut;
  expect(await generatedTokens(app)).toBeLessThan(1000 + 8 * long.max_tokens);
});

test('a step that fails ends those that were in it, and nobody else', async () => {
  await using server = await startServer();
  const { model } = server;
  const streaming = ask(server.url, { stream: true });
  const whole = ask(server.url, {});
  await until(() => model.scheduler.load.running === 2);
  const step = model.step;
  model.step = () => {
    model.step = step;
    return Promise.reject(new EspalierError('OUT_OF_MEMORY', 'a secret of the machine'));
  };
  const events = await eventsOf(await streaming);
  const refusal = { type: 'server_error', code: 'engine_error', message: 'the server failed to answer', param: null };
  expect(JSON.parse(events.at(-1)!)).toEqual({ error: refusal });
  const failed = await whole;
  expect([failed.status, await failed.json()]).toEqual([500, { error: refusal }]);
  expect(model.kv.free).toBe(model.kv.size);
  expect((await ask(server.url, { max_tokens: 3 })).status).toBe(200);
});

test('a hundred streams when the server stops: each ends with an event of its own', async () => {
  const server = await startServer();
  let begun = 0;
  const streams = Array.from({ length: 100 }, async (_, i) => {
    const answer = await ask(server.url, { stream: true, prompt: `${i}`, max_tokens: i < 50 ? 8 : 1800 });
    begun++;
    return (await eventsOf(answer)).at(-1)!;
  });
  const short = await Promise.all(streams.slice(0, 50));
  await until(() => begun === 100);
  await server.app.drain(0);
  expect(short).toEqual(Array(50).fill('[DONE]'));
  for (const end of await Promise.all(streams.slice(50))) expect(JSON.parse(end).error.type).toBe('server_error');
  expect(server.model.kv.free).toBe(server.model.kv.size);
  server.model.dispose();
});

test('a client that does not read does not hold up the end', async () => {
  const server = await startServer();
  const body = JSON.stringify({ ...long, n: 8, stream: true });
  const stalled = request(`${server.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
  });
  stalled.on('error', () => {});
  stalled.end(body);
  const [response] = await once(stalled, 'response');
  response.on('error', () => {}).pause();
  const begun = performance.now();
  await server.app.drain(100);
  expect(performance.now() - begun).toBeLessThan(5000);
  server.model.dispose();
});

test('hours of load, compressed: memory stays, and no block is lost', async () => {
  const script = fileURLToPath(new URL('support/soak-child.mjs', import.meta.url));
  const child = fork(script, [compiledLibrary(), demoModel], { execArgv: ['--expose-gc'] });
  onTestFinished(() => void child.kill('SIGKILL'));
  const [url] = (await once(child, 'message')) as [string];
  const state = async () => {
    child.send('state');
    return (await once(child, 'message'))[0] as { rss: number; usedBlocks: number };
  };
  let seed = 0;
  const one = async () => {
    const kind = seed++ % 8;
    const prompt = `${seed} ${'the river ran past the town '.repeat(seed % 20)}`;
    const body = {
      prompt,
      max_tokens: 5 + (seed % 30),
      seed,
      temperature: kind % 2,
      n: 1 + (seed % 3),
      stream: kind < 5,
    };
    if (kind === 0) return (await ask(url, { ...body, max_tokens: -1 })).text();
    if (kind > 2) return (await ask(url, body)).text();
    const control = new AbortController();
    setTimeout(() => control.abort(), seed % 30);
    return ask(url, body, control.signal)
      .then((answer) => answer.text())
      .catch(() => {});
  };
  const round = async (requests: number) => {
    let left = requests;
    const worker = async () => {
      while (left-- > 0) await one();
    };
    await Promise.all(Array.from({ length: 64 }, worker));
  };
  await round(900);
  const before = await state();
  await round(900);
  const after = await state();
  console.log(
    `resident: ${(before.rss / 2 ** 20).toFixed(0)} MiB after 900 requests, ${(after.rss / 2 ** 20).toFixed(0)} MiB after 1800`,
  );
  expect(after.usedBlocks).toBe(0);
  expect(after.rss).toBeLessThan(1.05 * before.rss);
});
