/** Log-probabilities, penalties and biases through OpenAI's own client, against logits in float64. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type RunningServer, startServer } from './support/server.ts';
import { logitsOf } from './support/steps.ts';

let server: RunningServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

const model = 'demo';
const messages = [{ role: 'user' as const, content: 'Where is the river?' }];
const rendered = 'User: Where is the river?\n\nAssistant:';
const encode = (text: string) => [...server.model.tokenizer!.encode(text, { addSpecialTokens: false })];

/** log softmax in float64, after each token. */
async function distributions(ids: readonly number[]): Promise<Float64Array[]> {
  return (await logitsOf(server.model, ids)).map((logits) => {
    const highest = Math.max(...logits);
    let sum = 0;
    for (const logit of logits) sum += Math.exp(logit - highest);
    return Float64Array.from(logits, (logit) => logit - highest - Math.log(sum));
  });
}

test('a chat gives the tokens of its text with their log-probabilities, whole and streamed', async () => {
  const body = { model, messages, max_tokens: 10, temperature: 1.3, seed: 3, logprobs: true, top_logprobs: 4 };
  const [choice] = (await server.client.chat.completions.create(body)).choices;
  const content = choice!.logprobs!.content!;
  expect(content.map(({ token }) => token).join('')).toBe(choice!.message.content);
  expect(Buffer.from(content.flatMap(({ bytes }) => bytes!)).toString()).toBe(choice!.message.content);
  const ids = content.map(({ bytes }) => {
    const spelled = Buffer.from(bytes!).toString();
    for (let id = 0; id < 4096; id++) if (server.model.tokenizer!.decode([id]) === spelled) return id;
    throw new Error(`no token is ${spelled}`);
  });
  const wanted = await distributions([...encode(rendered), ...ids]);
  const first = encode(rendered).length - 1;
  for (const [i, { logprob, top_logprobs }] of content.entries()) {
    const row = wanted[first + i]!;
    expect(logprob).toBeCloseTo(row[ids[i]!]!, 5);
    const best = [...row].sort((a, b) => b - a).slice(0, 4);
    for (const [rank, top] of top_logprobs.entries()) expect(top.logprob).toBeCloseTo(best[rank]!, 5);
  }
  const streamed: typeof content = [];
  const stream = await server.client.chat.completions.create({ ...body, stream: true });
  for await (const chunk of stream) streamed.push(...(chunk.choices[0]?.logprobs?.content ?? []));
  expect(streamed).toEqual(content);
});

test('tokens of a stop text or an end of text are not among them', async () => {
  const body = { model, messages, max_tokens: 30, temperature: 0, logprobs: true };
  const [whole] = (await server.client.chat.completions.create(body)).choices;
  const text = whole!.message.content!;
  const stop = text.slice(11, 16);
  const [cut] = (await server.client.chat.completions.create({ ...body, stop })).choices;
  const tokens = cut!.logprobs!.content!.map(({ token }) => token).join('');
  expect(cut!.message.content).toBe(text.slice(0, text.indexOf(stop)));
  expect(tokens.startsWith(cut!.message.content!)).toBe(true);
  expect(tokens).not.toContain(stop);
  // The end token is demanded.
  const ended = await server.client.chat.completions.create({ ...body, logit_bias: { 0: 100 } });
  expect(ended.choices[0]).toMatchObject({
    finish_reason: 'stop',
    message: { content: '' },
    logprobs: { content: [] },
  });
});

test('a completion with echo scores its prompt, as evaluation harnesses ask', async () => {
  const prompt = 'The old town lies by the river 🍎 and sleeps.';
  const ids = encode(prompt);
  const ask = (extra: object) =>
    server.client.completions.create({ model, prompt: ids, echo: true, temperature: 0, max_tokens: 1, ...extra });
  const [choice] = (await ask({ logprobs: 3 })).choices;
  const { tokens, token_logprobs, top_logprobs, text_offset } = choice!.logprobs as Required<
    NonNullable<typeof choice>['logprobs'] & object
  >;
  expect(tokens!.length).toBe(ids.length + 1);
  expect(choice!.text.startsWith(prompt)).toBe(true);
  const wanted = await distributions(ids);
  expect([token_logprobs![0], top_logprobs![0]]).toEqual([null, null]);
  const characters = [...choice!.text];
  for (let i = 1; i <= ids.length; i++) {
    const row = wanted[i - 1]!;
    const best = row.indexOf(Math.max(...row));
    expect(token_logprobs![i]).toBeCloseTo(row[ids[i] ?? best]!, 5);
    expect(Math.max(...Object.values(top_logprobs![i]!))).toBeCloseTo(row[best]!, 5);
    expect(Object.keys(top_logprobs![i]!).length).toBeGreaterThanOrEqual(3);
    if (tokens![i]!.startsWith('bytes:')) continue;
    const begin = text_offset![i]!;
    expect(characters.slice(begin, begin + [...tokens![i]!].length).join('')).toBe(tokens![i]);
  }
  // The apple has no token of its own: its bytes are spelled out, and all begin where it does.
  const apple = tokens!.flatMap((token, i) => (token.startsWith('bytes:\\x') ? [text_offset![i]] : []));
  expect(apple.length).toBeGreaterThan(1);
  expect(new Set(apple)).toEqual(new Set([[...prompt].indexOf('🍎')]));

  const none = await ask({ logprobs: 0, max_tokens: 0 });
  expect(none.choices[0]).toMatchObject({ text: prompt, finish_reason: 'length' });
  expect(none.choices[0]!.logprobs!.token_logprobs).toEqual(token_logprobs!.slice(0, -1));
  expect(none.usage).toMatchObject({ prompt_tokens: ids.length, completion_tokens: 0 });
  expect((await ask({ max_tokens: 0 })).choices[0]).toMatchObject({ text: prompt, logprobs: null });

  const parts: object[] = [];
  let text = '';
  for await (const chunk of await server.client.completions.create({
    model,
    prompt,
    echo: true,
    temperature: 0,
    max_tokens: 1,
    logprobs: 3,
    stream: true,
  })) {
    text += chunk.choices[0]!.text;
    parts.push(...chunk.choices[0]!.logprobs!.token_logprobs!.map((logprob) => ({ logprob })));
  }
  expect(text).toBe(choice!.text);
  expect(parts).toEqual(token_logprobs!.map((logprob) => ({ logprob })));
});

test('several prompts are scored at once, each by its own tokens', async () => {
  const prompts = ['The river', 'In 1984, the city', 'She'].map(encode);
  const { choices } = await server.client.completions.create({
    model,
    prompt: prompts,
    echo: true,
    max_tokens: 0,
    logprobs: 1,
  });
  for (const [i, ids] of prompts.entries()) {
    const wanted = await distributions(ids);
    const found = choices[i]!.logprobs!.token_logprobs!;
    expect(found.length).toBe(ids.length);
    for (let at = 1; at < ids.length; at++) expect(found[at]).toBeCloseTo(wanted[at - 1]![ids[at]!]!, 5);
  }
});

test('a greedy answer alone and in a full batch are the same, bit for bit', async () => {
  const ask = (content: string) =>
    server.client.chat.completions.create({
      model,
      messages: [{ role: 'user', content }],
      max_tokens: 24,
      temperature: 0,
      logprobs: true,
      top_logprobs: 5,
    });
  const wanted = (await ask('Where is the river?')).choices[0]!;
  const noise = Array.from({ length: 40 }, (_, i) =>
    server.client.completions.create({ model, prompt: `${i} and the walls `.repeat(1 + (i % 7)), max_tokens: 30 + i }),
  );
  for (const stream of [0, 1, 2]) {
    const [among, ...others] = await Promise.all([ask('Where is the river?'), ask(`What is ${stream}?`), ask('Why?')]);
    // Log-probabilities are compared as numbers, not as decimals that are close.
    expect(among.choices[0]).toEqual(wanted);
    expect(others[0]!.choices[0]).not.toEqual(wanted);
  }
  await Promise.all(noise);
});

test('penalties and biases reach the library', async () => {
  const ask = async (extra: object) =>
    (await server.client.completions.create({ model, prompt: 'Once', max_tokens: 20, temperature: 0, ...extra }))
      .choices[0]!.text;
  let wanted = '';
  const options = { presencePenalty: 1.5, frequencyPenalty: 1, logitBias: { 300: 2 }, maxTokens: 20 };
  for await (const { text } of server.model.generate('Once', options)) wanted += text;
  expect(await ask({ presence_penalty: 1.5, frequency_penalty: 1, logit_bias: { 300: 2 } })).toBe(wanted);
  expect(await ask({})).not.toBe(wanted);
});

test.each<[string, object, string]>([
  ['too many logprobs', { prompt: 'a', logprobs: 21 }, 'logprobs'],
  ['negative logprobs', { prompt: 'a', logprobs: -1 }, 'logprobs'],
  ['no tokens without echo', { prompt: 'a', max_tokens: 0 }, 'max_tokens'],
  ['too many top_logprobs', { messages, logprobs: true, top_logprobs: 21 }, 'top_logprobs'],
  ['top_logprobs alone', { messages, top_logprobs: 2 }, 'top_logprobs'],
  ['a large penalty', { messages, presence_penalty: 1e9 }, 'presence_penalty'],
  ['a large penalty', { prompt: 'a', frequency_penalty: -3 }, 'frequency_penalty'],
  ['a large bias', { prompt: 'a', logit_bias: { 5: 1e9 } }, 'logit_bias.5'],
  ['a bias of no token', { prompt: 'a', logit_bias: { '-1': 1 } }, 'logit_bias.-1'],
  ['a bias outside the vocabulary', { prompt: 'a', logit_bias: { 4096: 1 } }, 'logit_bias'],
  [
    'many biases',
    { prompt: 'a', logit_bias: Object.fromEntries(Array.from({ length: 2000 }, (_, i) => [i, 1])) },
    'logit_bias',
  ],
])('%s is refused', async (_, body, param) => {
  const url = 'messages' in body ? '/v1/chat/completions' : '/v1/completions';
  const answer = await server.app.inject({ method: 'POST', url, payload: { model, ...body } });
  expect([answer.statusCode, answer.json().error.param]).toEqual([400, param]);
});
