/** `espalier serve` as a process. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { demoModel, espalier, root } from './support/cli.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';

interface Answer {
  usage: { prompt_tokens: number; completion_tokens: number };
}

async function serve(...options: string[]) {
  const line = [`${root}bin/espalier.js`, 'serve', demoModel, '--port', '0', '--log-level', 'silent', ...options];
  const child = spawn(process.execPath, line, { stdio: ['ignore', 'pipe', 'inherit'] });
  onTestFinished(() => void child.kill('SIGKILL'));
  let stdout = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  while (!/^listening on /m.test(stdout)) await once(child.stdout, 'data');
  return { child, stdout: () => stdout, url: /^listening on (\S+)$/m.exec(stdout)![1]! };
}

test('says what it serves and where, answers, and ends with status 0 at SIGTERM', async () => {
  const { child, stdout, url } = await serve();
  expect(stdout()).toMatch(/demo: 16\.5 MB of weights, experts dense bf16; 8192 tokens of KV cache \(16\.8 MB\)$/m);
  expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
  const body = JSON.stringify({ model: 'demo', prompt: 'Once', max_tokens: 1800, ignore_eos: true });
  const headers = { 'content-type': 'application/json' };
  const answer = fetch(`${url}/v1/completions`, { method: 'POST', headers, body });
  while (!/running\{.*\} 1$/m.test(await (await fetch(`${url}/metrics`)).text()));
  child.kill('SIGTERM');
  expect(((await (await answer).json()) as Answer).usage.completion_tokens).toBe(1800);
  expect((await once(child, 'exit'))[0]).toBe(0);
});

test('a second SIGTERM ends it at once', async () => {
  const { child, url } = await serve('--shutdown-timeout', '600');
  const body = JSON.stringify({
    model: 'demo',
    prompt: 'Once',
    max_tokens: 2000,
    n: 8,
    ignore_eos: true,
    stream: true,
  });
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(`${url}/v1/completions`, { method: 'POST', headers, body });
  const reading = answer.text().catch(() => '');
  child.kill('SIGTERM');
  while ((await fetch(`${url}/health`).catch(() => undefined))?.status === 200);
  const begun = performance.now();
  child.kill('SIGTERM');
  expect((await once(child, 'exit'))[0]).toBe(130);
  expect(performance.now() - begun).toBeLessThan(1000);
  expect(await reading).not.toContain('[DONE]');
});

test('takes its keys and its chat template from files', async () => {
  const folder = temporaryFolder();
  const keys = join(folder, 'keys');
  writeFileSync(keys, '# of tests\nsecret\n');
  const template = join(folder, 'template.jinja');
  writeFileSync(template, "{{ messages[0]['content'] }}");
  const { url } = await serve('--api-key-file', keys, '--chat-template', template, '--model-name', 'small');
  expect((await fetch(`${url}/v1/models`)).status).toBe(401);
  const body = JSON.stringify({ model: 'small', messages: [{ role: 'user', content: 'A B' }], max_tokens: 1 });
  const headers = { 'content-type': 'application/json', authorization: 'Bearer secret' };
  const answer = await fetch(`${url}/v1/chat/completions`, { method: 'POST', headers, body });
  expect(((await answer.json()) as Answer).usage.prompt_tokens).toBe(2);
});

test('what it cannot use is refused', async () => {
  const folder = temporaryFolder();
  const empty = join(folder, 'keys');
  writeFileSync(empty, '# none\n');
  const first = await serve();
  const port = new URL(first.url).port;
  for (const [options, code, exit] of [
    [['--api-key-file', empty], 'USAGE', 2],
    [['--api-key-file', join(folder, 'missing')], 'USAGE', 2],
    [['--chat-template', join(folder, 'missing')], 'TOKENIZER', 2],
    [['--port', port], 'IO', 3],
  ] as const) {
    const { code: status, stderr } = await espalier(['serve', demoModel, '--log-level', 'silent', ...options]);
    expect([status, stderr.includes(`[${code}]`)], stderr).toEqual([exit, true]);
  }
});

test('the example serves its own route beside the API, and ends at SIGTERM', async () => {
  const example = `${root}examples/server-with-own-routes.mjs`;
  const child = spawn(process.execPath, [example, demoModel], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, PORT: '0' },
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  let log = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    log += text;
  });
  while (!/Server listening at/.test(log)) await once(child.stdout, 'data');
  const url = /Server listening at (http:\/\/127\.0\.0\.1:\d+)/.exec(log)![1]!;
  const own = (await (await fetch(`${url}/first-words?of=Once`)).json()) as { text: string };
  expect(own.text.length).toBeGreaterThan(0);
  const { data } = (await (await fetch(`${url}/v1/models`)).json()) as { data: { id: string }[] };
  expect(data.map(({ id }) => id)).toEqual(['pruned']);
  child.kill('SIGTERM');
  expect((await once(child, 'exit'))[0]).toBe(0);
});
