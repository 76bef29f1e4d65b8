/** Hostile connections, headers and bodies: each its answer, and a stream beside them that goes on as if alone. */
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { postHead, sendRaw } from './support/raw-http.ts';
import { type Bystander, bystander, type RunningServer, startServer, until } from './support/server.ts';

let server: RunningServer;
let beside: Bystander;
beforeAll(async () => {
  server = await startServer({ headersTimeout: 400, requestTimeout: 800 });
  beside = await bystander(server);
});
afterAll(async () => {
  await beside.check();
  await server[Symbol.asyncDispose]();
});

const path = '/v1/completions';
const small = JSON.stringify({ model: 'demo', prompt: 'A', max_tokens: 1 });
const closing = 'connection: close';

function errorOf(body: string) {
  const { error } = JSON.parse(body);
  expect(Object.keys(error).sort()).toEqual(['code', 'message', 'param', 'type']);
  return error;
}

describe('connections', () => {
  test('headers above 16 KB, one long or many short', async () => {
    for (const lines of [
      [`authorization: Bearer ${'k'.repeat(2 ** 20)}`],
      Array.from({ length: 10_000 }, (_, i) => `x-${i}: y`),
    ]) {
      const { status, body } = await sendRaw(server.url, [postHead(path, ...lines)]);
      expect(status).toBe(431);
      expect(errorOf(body).type).toBe('invalid_request_error');
    }
  });

  test('headers that never end, and a body that comes a byte at a time', async () => {
    const headers = await sendRaw(server.url, [`POST ${path} HTTP/1.1\r\n`, 'host: x\r\n', 'x: y\r\n'], 50);
    expect(headers.status).toBe(408);
    const body = await sendRaw(server.url, [postHead(path, `content-length: ${small.length}`), ...small], 100);
    expect(body.status).toBe(408);
    errorOf(body.body);
    for (const { milliseconds } of [headers, body]) expect(milliseconds).toBeLessThan(5000);
  });

  test.each([
    ['two lengths', `${postHead(path, 'content-length: 5', 'transfer-encoding: chunked')}0\r\n\r\nGET /metrics`],
    ['lengths that differ', `${postHead(path, 'content-length: 5', 'content-length: 6')}abcdef`],
    ['a chunk of no size', `${postHead(path, 'transfer-encoding: chunked')}zz\r\n`],
    ['a line with a null', 'GET /health HTTP/1.1\r\nhost: x\r\nx: \0\r\n\r\n'],
    ['no HTTP', 'EHLO mail\r\n\r\n'],
  ])('%s', async (_, text) => {
    const { status, body } = await sendRaw(server.url, [text]);
    expect(status).toBe(400);
    errorOf(body);
  });

  test('requests in a row on one connection are answered in their order', async () => {
    const requests = [
      `GET /health HTTP/1.1\r\nhost: x\r\n\r\n`,
      `GET /v1/models HTTP/1.1\r\nhost: x\r\n${closing}\r\n\r\n`,
    ];
    const { status, body } = await sendRaw(server.url, [requests.join('')]);
    expect(status).toBe(200);
    expect(body).toMatch(/^\{"status":"ok"\}HTTP\/1\.1 200 OK.*"object":"list"/s);
  });

  test('what follows a body that is longer than it says is none of it', async () => {
    const head = postHead(path, `content-length: ${small.length}`);
    const { status, body } = await sendRaw(server.url, [`${head}${small}garbage\r\n\r\n`]);
    expect([status, errorOf(body).message]).toEqual([400, 'the request is not HTTP']);
  });
});

describe('bodies', () => {
  test('above the limit are refused before they are read, and the connection closed', async () => {
    const lie = await sendRaw(server.url, [postHead(path, 'content-length: 3000000', closing)]);
    expect([lie.status, errorOf(lie.body).type]).toEqual([413, 'invalid_request_error']);
    const chunk = `10000\r\n${'a'.repeat(0x10000)}\r\n`;
    const endless = await sendRaw(server.url, [
      postHead(path, 'transfer-encoding: chunked', closing),
      ...Array(100).fill(chunk),
    ]);
    expect(endless.status).toBe(413);
  });

  test('are not unpacked', async () => {
    const bomb = gzipSync(Buffer.alloc(50_000_000, ' '));
    for (const encoding of ['gzip', 'br', 'deflate', 'gzip, gzip']) {
      const answer = await server.app.inject({
        method: 'POST',
        url: path,
        payload: bomb,
        headers: { 'content-type': 'application/json', 'content-encoding': encoding },
      });
      expect(answer.statusCode).toBe(415);
      errorOf(answer.body);
    }
  });

  const bytes = (...parts: (string | number)[]) =>
    Buffer.concat(parts.map((part) => (typeof part === 'number' ? Buffer.from([part]) : Buffer.from(part))));
  test.each<[string, string | Buffer, string | null]>([
    ['a number that JSON has not', '{"model":"demo","prompt":"A","temperature":NaN}', null],
    ['UTF-16', Buffer.from(small, 'utf16le'), null],
    ['a byte that is not UTF-8', bytes('{"model":"demo","prompt":"', 0xff, '"}'), null],
    ['half of a surrogate pair', '{"model":"demo","prompt":"\\ud800"}', null],
    ['half of a pair in a name', '{"model":"demo","\\udc00":"A"}', null],
    ['a name twice', '{"model":"demo","prompt":"A","prompt":"B"}', 'prompt'],
    ['a name twice, once in disguise', '{"model":"demo","prompt":"A","\\u0070rompt":"B"}', 'prompt'],
    ['a prototype', '{"model":"demo","prompt":"A","__proto__":{"stream":true}}', '__proto__'],
    ['a prototype deep down', '{"model":"demo","prompt":"A","user":{"a":[{"__proto__":1}]}}', '__proto__'],
    ['a million lists in each other', `{"model":"demo","prompt":${'['.repeat(1e6)}${']'.repeat(1e6)}}`, 'prompt'],
    [
      'the same where nobody looks',
      `{"model":"demo","prompt":"A","user":${'['.repeat(1e6)}${']'.repeat(1e6)}}`,
      'user',
    ],
    ['more lists than can be looked at', `{"model":"demo","prompt":[${'[7],'.repeat(4e5)}[7]]}`, 'prompt'],
    ['more texts', `{"model":"demo","prompt":[${'"a",'.repeat(4e5)}"a"]}`, 'prompt'],
    ['numbers that are no ids', `{"model":"demo","prompt":[${'0.5,'.repeat(4e5)}7]}`, 'prompt'],
    ['nothing, many times', `{"model":"demo","prompt":[${'null,'.repeat(4e5)}7]}`, 'prompt'],
    ['a text that does not end', '{"model":"demo","prompt":"A', null],
    ['more closed than opened', `{"model":"demo"${'}'.repeat(1e6)}`, null],
    ['no object', '[]', null],
    ['null', 'null', null],
  ])('of %s', async (_, payload, param) => {
    const begun = performance.now();
    const headers = { 'content-type': 'application/json' };
    const answer = await server.app.inject({ method: 'POST', url: path, payload, headers });
    expect(answer.statusCode).toBe(400);
    expect(errorOf(answer.body).param).toBe(param);
    // The event loop is the others'.
    expect(performance.now() - begun).toBeLessThan(1000);
  });

  test('texts much longer than the context are not encoded to their end', async () => {
    for (const prompt of ['a'.repeat(2e6), '😀'.repeat(2e5), 'the river '.repeat(2e5)]) {
      const begun = performance.now();
      const answers = await Promise.all([
        server.app.inject({ method: 'POST', url: path, payload: { model: 'demo', prompt } }),
        server.app.inject({ method: 'POST', url: '/tokenize', payload: { prompt } }),
        server.app.inject({
          method: 'POST',
          url: '/v1/chat/completions',
          payload: { model: 'demo', messages: [{ role: 'user', content: prompt }] },
        }),
      ]);
      expect(performance.now() - begun).toBeLessThan(2000);
      for (const { statusCode, body } of answers) {
        expect(statusCode).toBe(400);
        expect(errorOf(body)).toMatchObject({ code: 'context_length_exceeded' });
      }
    }
  });
});

test('a type, a method and a path that there are not', async () => {
  for (const type of ['text/plain', 'text/csv', 'application/x-www-form-urlencoded', 'application/jsonp', '']) {
    const headers = { 'content-type': type };
    const answer = await server.app.inject({ method: 'POST', url: path, payload: small, headers });
    expect(answer.statusCode, type).toBe(415);
    errorOf(answer.body);
  }
  for (const [method, url, allow] of [
    ['GET', path, 'POST'],
    ['DELETE', `${path}?x=1`, 'POST'],
    ['POST', '/health', 'GET, HEAD'],
    ['PUT', '/v1/models/demo', 'GET, HEAD'],
  ] as const) {
    const answer = await server.app.inject({ method, url });
    expect([answer.statusCode, answer.headers.allow]).toEqual([405, allow]);
    errorOf(answer.body);
  }
  for (const url of ['/nothing', '/v1', '/v1/models/a/b', '/v1/../health/x', '/%zz']) {
    const answer = await server.app.inject({ url });
    expect([404, 400], url).toContain(answer.statusCode);
    errorOf(answer.body);
  }
});

test('two Authorization headers open nothing, whatever they say', async () => {
  await using closed = await startServer({ apiKeys: ['secret'] });
  const get = (...lines: string[]) =>
    sendRaw(closed.url, [['GET /v1/models HTTP/1.1', 'host: x', closing, ...lines, '', ''].join('\r\n')]);
  expect((await get('authorization: Bearer secret')).status).toBe(200);
  expect((await get('authorization: Bearer secret', 'Authorization: Bearer secret')).status).toBe(401);
  expect((await get('authorization: Bearer secret', 'authorization: Bearer wrong')).status).toBe(401);
  expect((await get('authorization: Bearer wrong', 'authorization: Bearer secret')).status).toBe(401);
});

test('nothing of all this is left', async () => {
  await until(() => server.model.scheduler.load.running === 1);
});
