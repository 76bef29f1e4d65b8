/** Calls of tools: how a model is asked for them, and how they are read out of what it writes. */
import { randomUUID } from 'node:crypto';
import type { ChatTemplate } from '../tokenizer/chat-template.ts';
import { HttpError } from './errors.ts';
import type { RequestedFormat } from './formats.ts';
import type { ChatRequest } from './schemas.ts';

/** Hermes' form, which Qwen's templates ask for, too: a JSON object with `name` and `arguments` between these. */
const open = '<tool_call>';
const close = '</tool_call>';

export type Tool = NonNullable<ChatRequest['tools']>[number];

/** The tools of a request, and what it says about using them. */
export interface ToolUse {
  /** For the template. */
  readonly tools: readonly Tool[];
  /** Where a call is demanded. */
  readonly format: RequestedFormat | undefined;
  /** Whether an answer may hold several calls. */
  readonly several: boolean;
}

/** @throws HttpError 400 for tools that contradict each other or the template, or a choice that there is not */
export async function toolUse(
  { tools, tool_choice, parallel_tool_calls }: ChatRequest,
  template: () => Promise<ChatTemplate>,
): Promise<ToolUse | undefined> {
  const choice = tool_choice ?? 'auto';
  if (tools == null || tools.length === 0) {
    if (choice === 'auto' || choice === 'none') return undefined;
    throw new HttpError(400, 'tool_choice needs tools', { param: 'tool_choice' });
  }
  const names = tools.map((tool) => tool.function.name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new HttpError(400, `tools has two functions ${twice}`, { param: 'tools' });
  if (choice === 'none') return undefined;
  requireToolTemplate(await template());
  const several = parallel_tool_calls !== false && typeof choice === 'string';
  if (choice === 'auto') return { tools, format: undefined, several };
  const chosen = choice === 'required' ? tools : tools.filter((tool) => tool.function.name === choice.function.name);
  if (chosen.length === 0) {
    throw new HttpError(400, 'tool_choice names none of the tools', { param: 'tool_choice' });
  }
  return { tools, format: { format: callsOf(chosen, several), param: 'tools' }, several };
}

function requireToolTemplate({ file, templates }: ChatTemplate): void {
  const source = templates.get('tool_use') ?? templates.get('default') ?? '';
  if (/\btools\b/.test(source) && source.includes(open)) return;
  throw new HttpError(400, `${file} does not tell the model about tools as ${open}{"name", "arguments"}${close}`, {
    param: 'tools',
  });
}

function callsOf(tools: readonly Tool[], several: boolean): RequestedFormat['format'] {
  const tags = tools.map((tool) => ({
    begin: `${open}\n{"name": ${JSON.stringify(tool.function.name)}, "arguments": `,
    schema: tool.function.parameters ?? { type: 'object' },
    strict: tool.function.strict ?? true,
    end: `}\n${close}`,
  }));
  return { type: 'tagged', tags, separator: '\n', several };
}

/** A call as answers hold it. */
export interface ToolCall {
  readonly id: string;
  readonly type: 'function';
  readonly function: { readonly name: string; readonly arguments: string };
}

/** Tells the calls in an answer from the text around them, as it comes. What is not a call after all stays text. */
export class ToolCallReader {
  #held = '';

  /** @param isLast Nothing more comes. */
  push(text: string, isLast: boolean): { text: string; calls: ToolCall[] } {
    this.#held += text;
    const calls: ToolCall[] = [];
    let content = '';
    for (;;) {
      const begin = this.#held.indexOf(open);
      const end = begin < 0 ? -1 : this.#held.indexOf(close, begin);
      if (end < 0) break;
      const call = callOf(this.#held.slice(begin + open.length, end));
      const past = end + close.length;
      content += this.#held.slice(0, call === undefined ? past : begin);
      if (call !== undefined) calls.push(call);
      this.#held = this.#held.slice(past);
    }
    const kept = isLast ? this.#held.length : certain(this.#held);
    content += this.#held.slice(0, kept);
    this.#held = this.#held.slice(kept);
    return { text: content, calls };
  }
}

/** Characters at the beginning that belong to no call. */
function certain(text: string): number {
  const begin = text.indexOf(open);
  if (begin >= 0) return begin;
  for (let length = Math.min(open.length - 1, text.length); length > 0; length--) {
    if (open.startsWith(text.slice(-length))) return text.length - length;
  }
  return text.length;
}

function callOf(text: string): ToolCall | undefined {
  try {
    const { name, arguments: given } = JSON.parse(text) as { name?: unknown; arguments?: unknown };
    if (typeof name !== 'string') return undefined;
    const call = { name, arguments: typeof given === 'string' ? given : JSON.stringify(given ?? {}) };
    return { id: `call_${randomUUID()}`, type: 'function', function: call };
  } catch {
    return undefined;
  }
}
