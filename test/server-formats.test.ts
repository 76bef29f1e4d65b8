/** Structured output through OpenAI's own client. */
import { zodResponseFormat } from 'openai/helpers/zod';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { z } from 'zod';
import { type RunningServer, startServer } from './support/server.ts';
import { freshSeed } from './support/steps.ts';

let server: RunningServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

const model = 'demo';
const messages = [{ role: 'user' as const, content: 'Describe a tree.' }];
const Tree = z.object({
  name: z.string().max(10),
  height: z.int().min(0).max(99),
  fruit: z.enum(['pear', 'apple']).nullable(),
  branches: z.array(z.object({ side: z.enum(['left', 'right']) })).max(2),
});

test('a zod schema by the client’s own helper, parsed by it', async () => {
  const answer = await server.client.chat.completions.parse({
    model,
    messages,
    response_format: zodResponseFormat(Tree, 'tree'),
    max_tokens: 1000,
    seed: freshSeed(),
  });
  expect(answer.choices[0]!.finish_reason).toBe('stop');
  const tree = answer.choices[0]!.message.parsed;
  expect(Tree.safeParse(tree).error).toBeUndefined();
});

test('streamed, n times, the same as whole', async () => {
  const body = {
    model,
    messages,
    response_format: zodResponseFormat(Tree, 'tree'),
    max_tokens: 1000,
    seed: freshSeed() % 1000,
    n: 3,
  };
  const whole = await server.client.chat.completions.create(body);
  const texts = ['', '', ''];
  for await (const { choices } of await server.client.chat.completions.create({ ...body, stream: true })) {
    for (const { index, delta } of choices) texts[index] += delta.content ?? '';
  }
  expect(texts).toEqual(whole.choices.map(({ message }) => message.content));
  for (const text of texts) expect(Tree.safeParse(JSON.parse(text)).error).toBeUndefined();
});

test('a JSON object, and a regular expression in chats and completions', async () => {
  const { tokenizer, spec } = server.model;
  const [brace] = tokenizer!.encode('}', { addSpecialTokens: false });
  const object = await server.client.chat.completions.create({
    model,
    messages,
    response_format: { type: 'json_object' },
    // So that the object ends before the context does.
    logit_bias: { [brace!]: 100, [spec.eosTokenIds[0]!]: 100 },
  });
  expect(object.choices[0]!.finish_reason).toBe('stop');
  expect(typeof JSON.parse(object.choices[0]!.message.content!)).toBe('object');
  const structured_outputs = { regex: '(left|right) [0-9]{2}' };
  const pattern = /^(left|right) [0-9]{2}$/;
  const chat = await server.client.chat.completions.create({ model, messages, structured_outputs } as never);
  expect((chat as typeof object).choices[0]!.message.content).toMatch(pattern);
  const text = await server.client.completions.create({ model, prompt: 'Turn', structured_outputs } as never);
  expect((text as unknown as { choices: { text: string }[] }).choices[0]!.text).toMatch(pattern);
});

const schemaOf = (schema: unknown) => ({ type: 'json_schema', json_schema: { name: 'x', schema } });
test.each<[string, object, string]>([
  ['a type that there is not', { response_format: schemaOf({ type: 'foo' }) }, 'response_format'],
  ['a reference elsewhere', { response_format: schemaOf({ $ref: 'file:///etc/passwd' }) }, 'response_format'],
  ['a keyword', { response_format: schemaOf({ not: {} }) }, 'response_format'],
  ['no schema', { response_format: { type: 'json_schema' } }, 'response_format'],
  ['a form that there is not', { response_format: { type: 'xml' } }, 'response_format'],
  ['an expression', { structured_outputs: { regex: '((' } }, 'structured_outputs'],
  ['a grammar', { structured_outputs: { grammar: 'root ::= other' } }, 'structured_outputs'],
  ['a grammar of nothing', { structured_outputs: { grammar: 'root ::= ' } }, 'structured_outputs'],
  ['a choice', { structured_outputs: { choice: ['a'] } }, 'structured_outputs'],
  ['two forms', { response_format: { type: 'json_object' }, structured_outputs: { regex: 'a' } }, 'structured_outputs'],
])('%s is refused, streamed or not', async (_, wish, param) => {
  for (const stream of [false, true]) {
    const payload = { model, messages, stream, ...wish };
    const answer = await server.app.inject({ method: 'POST', url: '/v1/chat/completions', payload });
    expect(answer.statusCode).toBe(400);
    expect(answer.json().error.param.split('.')[0]).toBe(param);
    expect(answer.json().error.message).toContain(param);
  }
  expect(server.model.kv.free).toBe(server.model.kv.size);
});
