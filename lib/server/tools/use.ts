/** What a request says of tools. */
import type { ChatTemplate } from '../../tokenizer/chat-template.ts';
import { HttpError } from '../errors.ts';
import type { RequestedFormat } from '../formats.ts';
import type { ChatRequest } from '../schemas.ts';
import { type CallForm, formatOf, type Tool } from './forms.ts';
import { templateTools } from './template.ts';

export interface ToolUse {
  /** For the template. */
  readonly tools: readonly Tool[];
  /** How the model writes calls. */
  readonly form: CallForm;
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
  const { form, several: canSeveral } = templateTools(await template());
  const several = canSeveral && parallel_tool_calls !== false && typeof choice === 'string';
  if (choice === 'auto') return { tools, form, format: undefined, several };
  const chosen = choice === 'required' ? tools : tools.filter((tool) => tool.function.name === choice.function.name);
  if (chosen.length === 0) {
    throw new HttpError(400, 'tool_choice names none of the tools', { param: 'tool_choice' });
  }
  return { tools, form, format: { format: formatOf(form, chosen, several), param: 'tools' }, several };
}
