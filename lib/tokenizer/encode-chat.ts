/** From messages to tokens: the special ones are the template's alone. */
import { type ChatMessage, type RenderChatOptions, renderChat } from './chat-template.ts';
import { encodeAtMost } from './long-text.ts';
import type { Tokenizer } from './tokenizer.ts';

/** No character of any text (a noncharacter of Unicode); where messages have it, it is lost. */
const cut = '\uFDD0';

/**
 * What messages and tools say is text, even where it spells a special token: it is cut inside of such a name, and both sides are
 * encoded for themselves.
 * @param maxTokens See encodeAtMost.
 * @throws TOKENIZER as renderChat says, CONTEXT_FULL
 */
export function encodeChat(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  options: Omit<RenderChatOptions, 'bosToken' | 'eosToken'>,
  maxTokens: number,
): number[] {
  const { bosToken, eosToken, specialPattern: special } = tokenizer;
  const harmless = <T>(value: T) => (special === undefined ? value : (cutNames(value, special) as T));
  const tools = harmless(options.tools);
  const text = renderChat(harmless(messages), { ...options, tools, bosToken, eosToken });
  const ids: number[] = [];
  for (const part of text.split(cut)) {
    for (const id of encodeAtMost(tokenizer, part, maxTokens, { addSpecialTokens: false })) ids.push(id);
  }
  return ids;
}

/** The same with every text in it cut behind the first character of a special token's name. */
function cutNames(value: unknown, special: RegExp): unknown {
  if (typeof value === 'string') return value.replace(special, (name) => name[0] + cut + name.slice(1));
  if (Array.isArray(value)) return value.map((each) => cutNames(each, special));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, cutNames(each, special)]));
}
