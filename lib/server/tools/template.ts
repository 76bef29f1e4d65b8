/** What a chat template knows of tools, found by letting it write some. */
import { type ChatMessage, type ChatTemplate, renderChat } from '../../tokenizer/chat-template.ts';
import { HttpError } from '../errors.ts';
import { type CallForm, forms } from './forms.ts';
import { ToolCallReader } from './reader.ts';

export interface TemplateTools {
  readonly form: CallForm;
  /** Whether it writes messages of several calls. */
  readonly several: boolean;
}

/** With all that templates may look for in a tool. */
const tools = [
  {
    type: 'function',
    function: {
      name: 'probe_tool',
      description: 'Probes',
      parameters: {
        type: 'object',
        properties: { probe: { type: 'integer', description: 'What' } },
        required: ['probe'],
      },
    },
  },
];
const question: ChatMessage = { role: 'user', content: 'probe' };
const given = '{"probe":1}';

const known = new WeakMap<ChatTemplate, TemplateTools>();

/** @throws HttpError 400 for a template that does not tell a model of tools, or has it write calls in a form of its own */
export function templateTools(template: ChatTemplate): TemplateTools {
  const found = known.get(template) ?? probe(template);
  known.set(template, found);
  return found;
}

function probe(template: ChatTemplate): TemplateTools {
  const fail = (what: string) => new HttpError(400, `${template.file} ${what}`, { param: 'tools' });
  const asked = write(template, [question], true);
  if (!asked?.includes('probe_tool')) throw fail('does not tell the model about tools');
  const answerOf = (calls: number) => {
    const text = write(template, [question, messageOf(calls)], false);
    return text?.includes('probe_call') ? text.slice(commonLength(asked, text)) : undefined;
  };
  const one = answerOf(1);
  // Models were trained on such a form even where the template leaves it to the caller to write their calls.
  if (one === undefined) return { form: forms[0]!, several: true };
  const form = forms.find((each) => reads(each, one, 1));
  if (form === undefined) {
    const list = forms.map(({ name }) => name).join('; ');
    throw fail(`has the model write calls of tools in a form that this server does not read; it reads: ${list}`);
  }
  const two = answerOf(2);
  return { form, several: two !== undefined && reads(form, two, 2) };
}

/** Undefined where the template refuses the messages. */
function write(template: ChatTemplate, messages: readonly ChatMessage[], addGenerationPrompt: boolean) {
  try {
    return renderChat(messages, { template, tools, addGenerationPrompt });
  } catch {
    return undefined;
  }
}

/** Ids as the strictest templates want them. */
function messageOf(calls: number): ChatMessage {
  const call = (i: number) => ({
    id: `probe000${i}`,
    type: 'function',
    function: { name: 'probe_call', arguments: JSON.parse(given) },
  });
  return { role: 'assistant', content: '', tool_calls: Array.from({ length: calls }, (_, i) => call(i)) };
}

function commonLength(a: string, b: string): number {
  let length = 0;
  while (length < a.length && a[length] === b[length]) length++;
  return length;
}

function reads(form: CallForm, text: string, calls: number): boolean {
  const found = new ToolCallReader(form).push(text, true).calls;
  const names = found.flatMap(({ opening }) => opening?.name ?? []);
  const written = found.map((each) => each.arguments.replaceAll(/\s/g, '')).join('');
  return names.length === calls && names.every((name) => name === 'probe_call') && written === given.repeat(calls);
}
