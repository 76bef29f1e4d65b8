/** The forms in which models write calls of tools. A form is a row here: what a grammar makes of it, and what reads it. */
import { randomBytes, randomUUID } from 'node:crypto';
import type { AnswerFormat } from '../../grammar/format.ts';
import type { ChatRequest } from '../schemas.ts';
import { type CallShape, NamedCall, ObjectCall } from './calls.ts';

export type Tool = NonNullable<ChatRequest['tools']>[number];

/** An answer's calls are `begin`, calls with `separator` between them, `end`. */
export interface CallForm {
  readonly name: string;
  /** '': calls stand at the beginning of an answer, or nowhere. Readers allow for other whitespace than these three have. */
  readonly begin: string;
  readonly separator: string;
  readonly end: string;
  /** What stands before and behind the arguments. */
  around(name: string): readonly [string, string];
  shape(): CallShape;
  /** Texts in it that are special tokens of some tokenizers. */
  readonly specialTokens: readonly string[];
  /** Makes the id of a call, such as templates of this form take. */
  newId(): string;
}

const objectForm = (argumentsName: string) => ({
  around: (name: string) => [`{"name": ${JSON.stringify(name)}, "${argumentsName}": `, '}'] as const,
  shape: () => new ObjectCall(argumentsName),
});
const anyId = { newId: () => `call_${randomUUID().replaceAll('-', '').slice(0, 24)}` };
/** Mistral's templates refuse ids of other lengths. */
const mistralId = { newId: () => randomBytes(16).toString('base64').replace(/\W/g, '').slice(0, 9) };

/** The first is that of templates that tell a model of tools and show it no call. */
export const forms: readonly CallForm[] = [
  {
    name: 'Hermes and Qwen: <tool_call>{"name": …, "arguments": …}</tool_call>',
    begin: '<tool_call>\n',
    separator: '\n</tool_call>\n<tool_call>\n',
    end: '\n</tool_call>',
    specialTokens: ['<tool_call>', '</tool_call>'],
    ...objectForm('arguments'),
    ...anyId,
  },
  {
    name: 'Mistral: [TOOL_CALLS] [{"name": …, "arguments": …}]',
    begin: '[TOOL_CALLS] [',
    separator: ', ',
    end: ']',
    specialTokens: ['[TOOL_CALLS]'],
    ...objectForm('arguments'),
    ...mistralId,
  },
  {
    name: 'Mistral since 2025: [TOOL_CALLS]name[ARGS]{…}',
    begin: '[TOOL_CALLS]',
    separator: '[TOOL_CALLS]',
    end: '',
    around: (name) => [`${name}[ARGS]`, ''],
    shape: () => new NamedCall(),
    specialTokens: ['[TOOL_CALLS]', '[ARGS]', '[CALL_ID]'],
    ...mistralId,
  },
  {
    name: 'Llama 3: {"name": …, "parameters": …}',
    begin: '',
    separator: '; ',
    end: '',
    specialTokens: [],
    ...objectForm('parameters'),
    ...anyId,
  },
];

/** An answer of calls and nothing else. */
export function formatOf(form: CallForm, tools: readonly Tool[], several: boolean): AnswerFormat {
  const tags = tools.map((tool) => {
    const [begin, end] = form.around(tool.function.name);
    const schema = tool.function.parameters ?? { type: 'object' };
    return { begin, schema, strict: tool.function.strict ?? true, end };
  });
  return { type: 'tagged', tags, begin: form.begin, separator: form.separator, end: form.end, several };
}
