/** Tool calls through OpenAI's own client. */
import type OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { type RunningServer, startServer } from './support/server.ts';
import { freshSeed, randomFrom } from './support/steps.ts';
import { toolTemplate } from './support/tool-templates.ts';

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
  // The last may be cut off.
  for (const call of several.message.tool_calls!.slice(0, -1))
    checkCall(call as OpenAI.ChatCompletionMessageFunctionToolCall);
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

/** Lets the model say this, cut anywhere, whatever it is asked. */
function say(texts: readonly string[], finishReason: 'stop' | 'length' = 'stop'): void {
  const { generate } = server.model;
  const random = randomFrom(freshSeed());
  let answer = 0;
  server.model.generate = async function* () {
    const text = texts[answer++ % texts.length]!;
    for (let at = 0; at < text.length; ) {
      const length = 1 + Math.floor(random() * 6);
      yield { text: text.slice(at, at + length), ids: [7] };
      at += length;
    }
    yield { text: '', ids: [0], finishReason };
  };
  onTestFinished(() => {
    server.model.generate = generate;
  });
}

test('what the model says before a call is content, and the arguments come while they are written', async () => {
  const given = '{"tree": "pear",\n "branches": 3}';
  const call = `<tool_call>\n{"name": "prune", "arguments": ${given}}\n</tool_call>`;
  say([`I will.\n${call}\n${call}`, 'No.']);
  const stream = server.client.chat.completions.stream({ model, messages, tools, n: 2 });
  const seen: { name?: string | undefined; fragments: string[] }[] = [];
  let [content, ended] = ['', 0];
  for await (const { choices } of stream) {
    for (const { index, delta, finish_reason } of choices) {
      if (finish_reason !== null) ended++;
      if (index === 1) continue;
      content += delta.content ?? '';
      for (const each of delta.tool_calls ?? []) {
        const first = seen[each.index] === undefined;
        // The id and the name come once, before any of the arguments.
        expect([each.id !== undefined, each.type, each.function?.name]).toEqual(
          first ? [true, 'function', 'prune'] : [false, undefined, undefined],
        );
        seen[each.index] ??= { fragments: [] };
        if (!first) seen[each.index]!.fragments.push(each.function!.arguments!);
      }
    }
  }
  expect([content.trim(), ended]).toEqual(['I will.', 2]);
  for (const { fragments } of seen) {
    expect(fragments.length).toBeGreaterThan(4);
    expect(fragments.join('')).toBe(given);
  }
  const final = await stream.finalChatCompletion();
  expect(final.choices.map((choice) => choice.finish_reason)).toEqual(['tool_calls', 'stop']);
  expect(final.choices[0]!.message.tool_calls).toMatchObject(Array(2).fill({ function: { arguments: given } }));
  expect(final.choices[1]!.message).toMatchObject({ content: 'No.' });
  const whole = await server.client.chat.completions.create({ model, messages, tools });
  expect(whole.choices[0]!.message.tool_calls).toMatchObject(Array(2).fill({ function: { arguments: given } }));
});

test('a call that is cut off in its arguments has those that came', async () => {
  say(['<tool_call>{"name": "prune", "arguments": {"tree": "pe'], 'length');
  const body = { model, messages, tools };
  const stream = server.client.chat.completions.stream(body);
  for (const { choices } of [await stream.finalChatCompletion(), await server.client.chat.completions.create(body)]) {
    expect(choices[0]).toMatchObject({
      finish_reason: 'length',
      message: { tool_calls: [{ function: { name: 'prune', arguments: '{"tree": "pe' } }] },
    });
  }
});

test('of several calls only the first is given where the request wants one', async () => {
  const call = '<tool_call>{"name": "water", "arguments": {"litres": 1}}</tool_call>';
  say([call + call]);
  const body = { model, messages, tools, parallel_tool_calls: false };
  const stream = server.client.chat.completions.stream(body);
  for (const { choices } of [await stream.finalChatCompletion(), await server.client.chat.completions.create(body)]) {
    expect(choices[0]!.message.tool_calls).toMatchObject([{ function: { arguments: '{"litres": 1}' } }]);
  }
});

describe.each([
  { name: 'mistral-list', written: /^\[TOOL_CALLS\] \[\{"name": "\w+", "arguments": / },
  { name: 'mistral-named', written: /^\[TOOL_CALLS\]\w+\[ARGS\]\{/ },
  { name: 'llama', written: /^\{"name": "\w+", "parameters": / },
] as const)('a template that writes calls as $name', ({ name, written }) => {
  let own: RunningServer;
  beforeAll(async () => {
    own = await startServer({ chatTemplate: toolTemplate(name) });
    return () => own[Symbol.asyncDispose]();
  });

  test('gets its calls in that form, one, named and several, streamed and whole', async () => {
    const texts: string[] = [];
    const { generate } = own.model;
    own.model.generate = async function* (prompt, options) {
      texts.push('');
      for await (const piece of generate.call(own.model, prompt, options)) {
        texts[texts.length - 1] += piece.text;
        yield piece;
      }
    };
    const body = { model, messages, tools, seed: freshSeed() };
    // An end as soon as there may be one, of a list, too.
    const [bracket] = own.model.tokenizer!.encode(']', { addSpecialTokens: false });
    const soon = { 0: 100, [bracket!]: 100 };
    const required = { ...body, tool_choice: 'required' as const, logit_bias: soon };
    const whole = (await own.client.chat.completions.create(required)).choices[0]!;
    const calls = whole.message.tool_calls as OpenAI.ChatCompletionMessageFunctionToolCall[];
    expect([whole.finish_reason, whole.message.content, calls.length]).toEqual(['tool_calls', null, 1]);
    checkCall(calls[0]!);
    const streamed = await own.client.chat.completions.stream(required).finalChatCompletion();
    expect(streamed.choices[0]!.message.tool_calls).toMatchObject([{ function: calls[0]!.function }]);
    const water = { type: 'function' as const, function: { name: 'water' } };
    const named = await own.client.chat.completions.create({ ...required, tool_choice: water });
    expect(named.choices[0]!.message.tool_calls).toMatchObject([{ function: { name: 'water' } }]);
    const many = await own.client.chat.completions.create({
      ...required,
      logit_bias: { 0: -100, [bracket!]: -100 },
      max_tokens: 300,
      temperature: 0,
    });
    const several = many.choices[0]!.message.tool_calls!;
    if (name === 'llama') expect(several.length).toBe(1);
    else expect(several.length).toBeGreaterThan(1);
    for (const text of texts) expect(text).toMatch(written);
    // The template takes them back, ids included.
    const history = [
      ...messages,
      { role: 'assistant' as const, content: null, tool_calls: calls },
      ...calls.map(({ id }) => ({ role: 'tool' as const, tool_call_id: id, content: 'done' })),
    ];
    const answer = await own.client.chat.completions.create({ model, messages: history, tools, max_tokens: 2 });
    expect(answer.choices.length).toBe(1);
    const none = await own.client.chat.completions.create({ ...body, tool_choice: 'none', max_tokens: 4 });
    expect(none.choices[0]!.message.tool_calls).toBeUndefined();
  });
});
