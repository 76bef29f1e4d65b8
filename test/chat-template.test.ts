import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { EspalierError } from '../lib/errors.ts';
import { type ChatMessage, loadChatTemplate, renderChat } from '../lib/tokenizer/chat-template.ts';
import { folderWith } from './support/tokenizers.ts';

const turns = `{{ bos_token }}{%- for message in messages -%}
  {%- if loop.first and message.role == 'assistant' -%}{{ raise_exception('the first turn is the user\\'s') }}{%- endif -%}
  {{- '<' + message['role'] + '>' + message.content | trim + '</' + message.role + '>' + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}`;
const messages: ChatMessage[] = [
  { role: 'user', content: ' Prune the pear. ' },
  { role: 'assistant', content: 'In winter.' },
  { role: 'user', content: 'And the apple 🍎?' },
];
const inline = (source: string) => ({ file: 'a template', templates: new Map([['default', source]]) });
const errorOf = (task: () => unknown): EspalierError => {
  try {
    task();
  } catch (error) {
    expect(error).toBeInstanceOf(EspalierError);
    return error as EspalierError;
  }
  return expect.fail('nothing was thrown');
};

describe('a chat', () => {
  it('is rendered with its begin and end tokens and the beginning of an answer', () => {
    expect(renderChat(messages, { template: inline(turns), bosToken: '<s>', eosToken: '|' })).toBe(
      '<s><user>Prune the pear.</user>|<assistant>In winter.</assistant>|<user>And the apple 🍎?</user>|<assistant>',
    );
  });

  it('is rendered without the beginning of an answer on request, and with no tokens where there are none', () => {
    expect(renderChat(messages.slice(0, 1), { template: inline(turns), addGenerationPrompt: false })).toBe(
      '<user>Prune the pear.</user>',
    );
  });

  it('prefers the template for tools when tools are given', () => {
    const template = {
      file: 'a template',
      templates: new Map([
        ['default', 'plain'],
        ['tool_use', '{% for tool in tools %}{{ tool | tojson }}{% endfor %}'],
      ]),
    };
    expect(renderChat(messages, { template })).toBe('plain');
    expect(JSON.parse(renderChat(messages, { template, tools: [{ name: 'cut', n: 1 }] }))).toEqual({
      name: 'cut',
      n: 1,
    });
  });

  it('sees tools as undefined when none are given', () => {
    expect(renderChat(messages, { template: inline('{% if tools is defined %}tools{% else %}none{% endif %}') })).toBe(
      'none',
    );
  });

  it('can count, and write the year', () => {
    const template = inline(
      "{% for i in range(5, 0, -2) %}{{ i }}{% endfor %} {{ range(3) | length }} {{ strftime_now('%Y') }}",
    );
    expect(renderChat([], { template })).toBe(`531 3 ${new Date().getFullYear()}`);
  });
});

describe('the template of a checkpoint', () => {
  it('comes from chat_template.jinja before tokenizer_config.json', async () => {
    const folder = folderWith({ 'chat_template.jinja': 'file', 'tokenizer_config.json': { chat_template: 'config' } });
    expect(renderChat([], { template: await loadChatTemplate(folder) })).toBe('file');
  });

  it('comes from tokenizer_config.json as a text or a list of named ones', async () => {
    const text = folderWith({ 'tokenizer_config.json': { chat_template: 'config' } });
    expect(renderChat([], { template: await loadChatTemplate(text) })).toBe('config');
    const list = [
      { name: 'default', template: 'first' },
      { name: 'tool_use', template: 'second' },
    ];
    const template = await loadChatTemplate(folderWith({ 'tokenizer_config.json': { chat_template: list } }));
    expect(renderChat([], { template })).toBe('first');
    expect(renderChat([], { template, tools: [] })).toBe('second');
  });

  it('is missing from a base model, and the error says to use a prompt', async () => {
    for (const folder of [folderWith({}), folderWith({ 'tokenizer_config.json': {} })]) {
      await expect(loadChatTemplate(folder)).rejects.toMatchObject({
        code: 'TOKENIZER',
        file: join(folder, 'tokenizer_config.json'),
        message: expect.stringContaining('a prompt instead'),
      });
    }
  });

  it.each([7, {}, [7], [{ name: 'default' }]])('is refused when it is %j', async (chat_template) => {
    const folder = folderWith({ 'tokenizer_config.json': { chat_template } });
    await expect(loadChatTemplate(folder)).rejects.toMatchObject({ code: 'TOKENIZER', field: 'chat_template' });
  });

  it('is refused when no template is named default', async () => {
    const chat_template = [{ name: 'rag', template: 'x' }];
    const template = await loadChatTemplate(folderWith({ 'tokenizer_config.json': { chat_template } }));
    expect(errorOf(() => renderChat([], { template }))).toMatchObject({
      code: 'TOKENIZER',
      message: expect.stringContaining('only rag'),
    });
  });
});

describe('a template that fails', () => {
  it('passes on what it says about the messages', () => {
    const error = errorOf(() => renderChat(messages.slice(1), { template: inline(turns) }));
    expect(error.code).toBe('TOKENIZER');
    expect(error.message).toContain("the first turn is the user's");
  });

  const hostile = {
    'is not Jinja': '{% for %}',
    'never closes a block': '{% if true %}',
    'calls what is not there': '{{ nothing() }}',
    'loops for ever': '{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}',
    'counts to a billion': '{{ range(10**9) | length }}{{ range(1000000000) | length }}',
    'counts without end': '{{ range(0, 1, 0) | length }}',
    'writes more than a context holds':
      "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(22) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    'doubles a text without end':
      "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    'doubles a list without end':
      '{% set ns = namespace(l=[1, 2]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l | length }}',
    'calls itself': '{% macro f(g) %}{{ g(g) }}{% endmacro %}{{ f(f) }}',
    'is nested without end': `{{ ${'('.repeat(100_000)}1${')'.repeat(100_000)} }}`,
    'walks to the function constructor': "{{ messages.constructor.constructor('return process')().exit(3) }}",
  };
  it.each(Object.entries(hostile))('because it %s raises an error within seconds', (_, source) => {
    const start = performance.now();
    expect(errorOf(() => renderChat(messages, { template: inline(source) })).code).toBe('TOKENIZER');
    expect(performance.now() - start).toBeLessThan(10_000);
  });

  it('cannot reach the prototype of a value', () => {
    const source = "{{ messages.__proto__ }}{{ ''.__class__ }}{{ messages['constructor'] }}|";
    expect(renderChat(messages, { template: inline(source) })).toBe('|');
  });
});
