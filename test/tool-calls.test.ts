/** How calls are read out of an answer while it is written, and which form a template has. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { Grammars } from '../lib/grammar/grammars.ts';
import { Tokenizer } from '../lib/index.ts';
import { type CallForm, formatOf, forms } from '../lib/server/tools/forms.ts';
import { ToolCallReader } from '../lib/server/tools/reader.ts';
import { templateTools } from '../lib/server/tools/template.ts';
import { loadChatTemplate, readChatTemplate } from '../lib/tokenizer/chat-template.ts';
import { TextStream } from '../lib/tokenizer/text-stream.ts';
import { demoModel } from './support/models.ts';
import { freshSeed, randomFrom } from './support/steps.ts';
import { folderWith } from './support/tokenizers.ts';
import { type TemplateName, toolTemplate } from './support/tool-templates.ts';

const [hermes, list, named, llama] = forms as [CallForm, CallForm, CallForm, CallForm];

function read(form: CallForm, pieces: readonly string[]) {
  const reader = new ToolCallReader(form);
  let text = '';
  const calls: { name: string; arguments: string }[] = [];
  for (const [i, piece] of pieces.entries()) {
    const found = reader.push(piece, i === pieces.length - 1);
    text += found.text;
    for (const { index, opening, arguments: given } of found.calls) {
      if (opening !== undefined) calls[index] = { name: opening.name, arguments: '' };
      calls[index]!.arguments += given;
    }
  }
  return { text, calls };
}

const a = (given: string) => ({ name: 'a', arguments: given });
const tricky = '{"x": "}\\"]</tool_call>", "y": [1, {"z": "\\\\"}]}';

test.each<[CallForm, string, string, object[]]>([
  [hermes, 'I will.<tool_call>{"name": "a", "arguments": {"x": 1}}</tool_call>', 'I will.', [a('{"x": 1}')]],
  [hermes, '<tool_call>\n{"name": "a"}\n</tool_call> and', ' and', [a('{}')]],
  [hermes, `<tool_call>{"name": "a", "arguments": ${tricky}}</tool_call>`, '', [a(tricky)]],
  [hermes, '<tool_call>{"arguments": {"x": 1}, "name": "a"}</tool_call>', '', [a('{"x": 1}')]],
  [hermes, '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}", "id": "7"}</tool_call>', '', [a('{"x": 1}')]],
  [hermes, '<tool_call>{"name": "a", "arguments": null}</tool_call>', '', [a('{}')]],
  [
    hermes,
    '<tool_call>{"name":"a","arguments":{}}</tool_call>\n<tool_call>{"name":"a","arguments":{"x":1}}</tool_call>',
    '',
    [a('{}'), a('{"x":1}')],
  ],
  [hermes, '<tool_call>{"name": "a", "arguments": {"x": "cut', '', [a('{"x": "cut')]],
  [hermes, '<tool_call>{"name": "a", "arguments": {}}\n</tool_', '', [a('{}')]],
  [hermes, '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []],
  [hermes, '<tool_call>{"name": "a"', '<tool_call>{"name": "a"', []],
  [hermes, '<tool_call>[{"name": "a"}]', '<tool_call>[{"name": "a"}]', []],
  [hermes, 'a < b <tool_cal', 'a < b <tool_cal', []],
  [hermes, '</tool_call> no', '</tool_call> no', []],
  [list, 'Yes.[TOOL_CALLS] [{"name": "a", "arguments": {"x": [1]}}]', 'Yes.', [a('{"x": [1]}')]],
  [
    list,
    '[TOOL_CALLS][{"name":"a","arguments":{},"id":"123456789"},\n{"arguments":{"x":1},"name":"a"}] so',
    ' so',
    [a('{}'), a('{"x":1}')],
  ],
  [list, '[TOOL_CALLS] no', '[TOOL_CALLS] no', []],
  [list, '[TOOL', '[TOOL', []],
  [named, `[TOOL_CALLS]a[ARGS]${tricky}[TOOL_CALLS]a[CALL_ID]123456789[ARGS] {}`, '', [a(tricky), a('{}')]],
  [named, 'So [TOOL_CALLS]a[ARGS]{"x": ', 'So ', [a('{"x": ')]],
  [named, '[TOOL_CALLS] I will {not}', '[TOOL_CALLS] I will {not}', []],
  [llama, '\n{"name": "a", "parameters": {"x": 1}}', '', [a('{"x": 1}')]],
  [llama, '{"name": "a", "parameters": {}}; {"name": "a", "parameters": {"x": 1}}', '', [a('{}'), a('{"x": 1}')]],
  [
    llama,
    '{"names": ["a"]} and {"name": "a", "parameters": {}}',
    '{"names": ["a"]} and {"name": "a", "parameters": {}}',
    [],
  ],
  [llama, 'It is {"name": "a", "parameters": {}}', 'It is {"name": "a", "parameters": {}}', []],
])('%o reads %j', (form, whole, text, calls) => {
  const random = randomFrom(freshSeed());
  for (let round = 0; round < 20; round++) {
    const pieces: string[] = [];
    for (let at = 0; at < whole.length; ) {
      const length = 1 + Math.floor(random() * 8);
      pieces.push(whole.slice(at, at + length));
      at += length;
    }
    expect(read(form, pieces)).toEqual({ text, calls });
  }
});

test('no argument is held back: what has come of them is given on', () => {
  for (const [form, head] of [
    [hermes, '<tool_call>\n{"name": "a", "arguments": '],
    [list, '[TOOL_CALLS] [{"name": "a", "arguments": '],
    [named, '[TOOL_CALLS]a[ARGS]'],
    [llama, '{"name": "a", "parameters": '],
  ] as const) {
    const reader = new ToolCallReader(form);
    reader.push(head, false);
    for (const [i, character] of [...tricky].entries()) {
      const given = reader.push(character, false).calls.map((call) => call.arguments);
      expect(given.join('')).toBe(character);
      if (i > 0) expect(given.length).toBe(1);
    }
  }
});

describe('a template', () => {
  test('has the form in which it writes a call', async () => {
    const formOf = async (name: TemplateName) => templateTools(await readChatTemplate(toolTemplate(name)));
    expect(templateTools(await loadChatTemplate(demoModel))).toEqual({ form: hermes, several: true });
    expect(await formOf('mistral-list')).toEqual({ form: list, several: true });
    expect(await formOf('mistral-named')).toEqual({ form: named, several: true });
    expect(await formOf('llama')).toEqual({ form: llama, several: false });
    expect(await formOf('silent')).toEqual({ form: hermes, several: true });
    await expect(formOf('unknown')).rejects.toMatchObject({ status: 400, param: 'tools' });
  });

  test('that says nothing of tools is refused', () => {
    const template = { file: 'here', templates: new Map([['default', '{{ messages[0].content }} tools']]) };
    expect(() => templateTools(template)).toThrow('does not tell the model about tools');
  });
});

describe('marks that are special tokens of the vocabulary', () => {
  /** The demo's vocabulary with two of its pieces made special tokens. */
  async function marked() {
    const json = JSON.parse(readFileSync(join(demoModel, 'tokenizer.json'), 'utf8'));
    const { vocab, merges } = json.model;
    const marks: Record<string, number> = { '[TOOL_CALLS]': 4094, '[ARGS]': 4095 };
    for (const [piece, id] of Object.entries(vocab)) if ((id as number) >= 4094) delete vocab[piece];
    json.model.merges = merges.filter(([left, right]: string[]) => left! + right! in vocab);
    for (const [content, id] of Object.entries(marks)) {
      json.added_tokens.push({ ...json.added_tokens[0], id, content });
    }
    return Tokenizer.load(folderWith({ 'tokenizer.json': json }));
  }

  test('are in the text where they belong to it, and in no other', async () => {
    const tokenizer = await marked();
    const ids = [4094, ...tokenizer.encode('a', { addSpecialTokens: false }), 4095, 0];
    const text = (specialTokens?: readonly string[]) => {
      const stream = new TextStream(tokenizer, { specialTokens });
      return ids.map((id) => stream.push(id)).join('') + stream.end();
    };
    expect(text(named.specialTokens)).toBe('[TOOL_CALLS]a[ARGS]');
    expect(text(['[ARGS]'])).toBe('a[ARGS]');
    expect(text()).toBe('a');
  });

  test('may begin a call, and may not stand in an answer of another form', async () => {
    const tokenizer = await marked();
    const grammars = new Grammars(tokenizer, [0], 4096);
    const allows = (mask: Int32Array, id: number) => ((mask[id >> 5]! >>> (id & 31)) & 1) === 1;
    const tool = { type: 'function' as const, function: { name: 'f' } };
    const call = await grammars.start(formatOf(named, [tool], true), named.specialTokens);
    expect(allows(await call.next(), 4094)).toBe(true);
    let mask = await call.next(4094);
    expect([allows(mask, 4094), allows(mask, 4095)]).toEqual([false, false]);
    for (const id of tokenizer.encode('f', { addSpecialTokens: false })) mask = await call.next(id);
    expect(allows(mask, 4095)).toBe(true);
    mask = await call.next(4095);
    for (const id of tokenizer.encode('{}', { addSpecialTokens: false })) mask = await call.next(id);
    expect([allows(mask, 0), allows(mask, 4094)]).toEqual([true, true]);
    const any = await grammars.start({ type: 'regex', pattern: '.*' });
    mask = await any.next();
    expect([allows(mask, 4094), allows(mask, 4095), allows(mask, 0)]).toEqual([false, false, true]);
    grammars.dispose();
  });
});
