/** Tool calls through OpenAI's own client, and how they are read out of an answer. */
import type OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ToolCallReader } from '../lib/server/tools.ts';
import { type RunningServer, startServer } from './support/server.ts';
import { freshSeed, randomFrom } from './support/steps.ts';

let server: RunningServer;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server[Symbol.asyncDispose]());

const model = 'demo';
const messages = [{ role: 'user' as const, content: 'Prune the pear.' }];
const tool = (name: string, parameters: Record<string, unknown>): OpenAI.ChatCompletionFunctionTool => ({
  type: 'function',
  function: { name, description: `To ${name}`, parameters },
});
const tools = [
  tool('prune', {
    type: 'object',
    properties: { tree: { enum: ['pear', 'apple'] }, branches: { type: 'integer', minimum: 1, maximum: 9 } },
    required: ['tree', 'branches'],
    additionalProperties: false,
  }),
  tool('water', { type: 'object', properties: { litres: { enum: [1, 2] } }, required: ['litres'] }),
];

function checkCall(call: { function: { name: string; arguments: string } }) {
  const given = JSON.parse(call.function.arguments);
  if (call.function.name === 'prune') {
    expect(['pear', 'apple']).toContain(given.tree);
    expect(given.branches >= 1 && given.branches <= 9).toBe(true);
  } else {
    expect(call.function.name).toBe('water');
    expect([1, 2]).toContain(given.litres);
  }
}

/** An end token as soon as there may be one. */
const logit_bias = { 0: 100 };

test('a call that is demanded has the name and the arguments of a tool', async () => {
  const ask = (tool_choice: OpenAI.ChatCompletionToolChoiceOption, seed = freshSeed()) =>
    server.client.chat.completions.create({ model, messages, tools, tool_choice, seed, logit_bias });
  for (let round = 0; round < 3; round++) {
    const [choice] = (await ask('required')).choices;
    expect(choice).toMatchObject({ finish_reason: 'tool_calls', message: { content: null } });
    expect(choice!.message.tool_calls!.length).toBe(1);
    for (const call of choice!.message.tool_calls as OpenAI.ChatCompletionMessageFunctionToolCall[]) {
      expect(call).toMatchObject({ type: 'function', id: expect.stringMatching(/^call_/) });
      checkCall(call);
    }
  }
  const named = await ask({ type: 'function', function: { name: 'water' } });
  expect(named.choices[0]!.message.tool_calls).toMatchObject([{ function: { name: 'water' } }]);
});

test('several calls come in one answer, unless they may not', async () => {
  // The end is put off as long as the form allows.
  const ask = (parallel_tool_calls: boolean) =>
    server.client.chat.completions.create({
      model,
      messages,
      tools,
      tool_choice: 'required',
      parallel_tool_calls,
      logit_bias: { 0: -100 },
      max_tokens: 400,
      temperature: 0,
    });
  const several = (await ask(true)).choices[0]!;
  expect(several.message.tool_calls!.length).toBeGreaterThan(1);
  for (const call of several.message.tool_calls!) checkCall(call as OpenAI.ChatCompletionMessageFunctionToolCall);
  expect((await ask(false)).choices[0]!.message.tool_calls!.length).toBe(1);
});

test('calls are streamed as deltas that the client puts together', async () => {
  const body = { model, messages, tools, tool_choice: 'required' as const, seed: 5, logit_bias };
  const whole = (await server.client.chat.completions.create(body)).choices[0]!;
  const stream = server.client.chat.completions.stream(body);
  const final = await stream.finalChatCompletion();
  const calls = (choice: typeof whole) =>
    (choice.message.tool_calls as OpenAI.ChatCompletionMessageFunctionToolCall[]).map((call) => ({
      name: call.function.name,
      arguments: call.function.arguments,
    }));
  expect(calls(final.choices[0]!)).toEqual(calls(whole));
  expect(final.choices[0]!.finish_reason).toBe('tool_calls');
});

test('the template is told of tools, calls and their results', async () => {
  const prompts: string[] = [];
  const { generate } = server.model;
  server.model.generate = (prompt, options) => {
    prompts.push(server.model.tokenizer!.decode(prompt as number[]));
    return generate.call(server.model, prompt, options);
  };
  const call = {
    id: 'call_1',
    type: 'function' as const,
    function: { name: 'prune', arguments: '{"tree": "pear", "branches": 2}' },
  };
  const history: OpenAI.ChatCompletionMessageParam[] = [
    ...messages,
    { role: 'assistant', content: null, tool_calls: [call] },
    { role: 'tool', tool_call_id: 'call_1', content: 'done' },
  ];
  const ask = (extra: object) =>
    server.client.chat.completions.create({ model, messages: history, max_tokens: 2, ...extra });
  await ask({ tools });
  await ask({ tools, tool_choice: 'none' });
  server.model.generate = generate;
  const [told, untold] = prompts as [string, string];
  const chat =
    'User: Prune the pear.\n\nAssistant: \n<tool_call>\n{"name": "prune", "arguments": ' +
    '{"tree": "pear", "branches": 2}}\n</tool_call>\n\nTool: done\n\nAssistant:';
  expect(untold).toBe(chat);
  expect(told.endsWith(chat)).toBe(true);
  expect(told).toContain('"name": "water"');
});

test.each<[string, object, string]>([
  ['a choice without tools', { tool_choice: 'required' }, 'tool_choice'],
  ['a choice of none of them', { tools, tool_choice: { type: 'function', function: { name: 'x' } } }, 'tool_choice'],
  ['two of a name', { tools: [tools[0], tools[0]] }, 'tools'],
  ['too many', { tools: Array.from({ length: 1000 }, (_, i) => tool(`t${i}`, {})) }, 'tools'],
  ['a name', { tools: [tool('a b', {})] }, 'tools.0.function.name'],
  ['another kind', { tools: [{ type: 'web_search' }] }, 'tools.0.type'],
  ['a schema', { tools: [tool('a', { type: 'foo' })], tool_choice: 'required' }, 'tools'],
  ['a form besides', { tools, response_format: { type: 'json_object' } }, 'response_format'],
  ['functions of old', { functions: [] }, 'functions'],
])('%s is refused', async (_, wish, param) => {
  const payload = { model, messages, ...wish };
  const answer = await server.app.inject({ method: 'POST', url: '/v1/chat/completions', payload });
  expect([answer.statusCode, answer.json().error.param]).toEqual([400, param]);
});

describe('calls in a text', () => {
  const read = (pieces: string[]) => {
    const reader = new ToolCallReader();
    let text = '';
    const calls: object[] = [];
    for (const [i, piece] of pieces.entries()) {
      const found = reader.push(piece, i === pieces.length - 1);
      text += found.text;
      calls.push(...found.calls.map((call) => call.function));
    }
    return { text, calls };
  };
  const cases: [string, string, object[]][] = [
    [
      'I will.<tool_call>{"name": "a", "arguments": {"x": 1}}</tool_call>',
      'I will.',
      [{ name: 'a', arguments: '{"x":1}' }],
    ],
    ['<tool_call>\n{"name": "a"}\n</tool_call> and', ' and', [{ name: 'a', arguments: '{}' }]],
    ['<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []],
    ['<tool_call>{"name": "a"', '<tool_call>{"name": "a"', []],
    ['a < b <tool_cal', 'a < b <tool_cal', []],
    ['</tool_call> no', '</tool_call> no', []],
  ];
  test.each(cases)('%s', (whole, text, calls) => {
    const random = randomFrom(freshSeed());
    for (let round = 0; round < 20; round++) {
      const pieces: string[] = [];
      for (let at = 0; at < whole.length; ) {
        const length = 1 + Math.floor(random() * 8);
        pieces.push(whole.slice(at, at + length));
        at += length;
      }
      expect(read(pieces)).toEqual({ text, calls });
    }
  });
});
