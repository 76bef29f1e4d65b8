/** Log-probabilities in the forms of chats and of completions, and which tokens belong to an answer's text. */
import type { TokenLogprob } from '../runtime/logprobs.ts';
import { TextStream } from '../tokenizer/text-stream.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';

/** A token with where its text begins, in characters (code points). */
export interface PlacedToken {
  readonly offset: number;
  readonly id: number;
  /** Null for the first token of a text, which nothing comes before. */
  readonly logprob: TokenLogprob | null;
}

const lengthOf = (text: string) => {
  let length = 0;
  for (const _ of text) length++;
  return length;
};

/** Finds where the text of each token of a text begins. */
export class TokenPlaces {
  readonly #stream: TextStream;
  #length: number;

  /**
   * @param begin Characters before the text.
   * @param specialTokens As of `generate`.
   */
  constructor(tokenizer: Tokenizer, begin = 0, specialTokens?: readonly string[]) {
    this.#stream = new TextStream(tokenizer, { specialTokens });
    this.#length = begin;
  }

  place(id: number, logprob: TokenLogprob | null): PlacedToken {
    const offset = this.#length;
    this.#length += lengthOf(this.#stream.push(id));
    return { offset, id, logprob };
  }
}

/** The tokens of one answer, held back as its text is, so that those of a stop string or an end of text never come out. */
export class AnswerTokens {
  readonly #places: TokenPlaces;
  #held: PlacedToken[] = [];
  #length: number;

  /**
   * @param begin Characters before the answer.
   * @param specialTokens As of `generate`.
   */
  constructor(tokenizer: Tokenizer, begin: number, specialTokens?: readonly string[]) {
    this.#places = new TokenPlaces(tokenizer, begin, specialTokens);
    this.#length = begin;
  }

  /** Takes what a piece of the answer says; returns the tokens whose text has come out. */
  push(text: string, logprobs: readonly TokenLogprob[], finishReason: string | undefined): PlacedToken[] {
    for (const logprob of logprobs) this.#held.push(this.#places.place(logprob.id, logprob));
    this.#length += lengthOf(text);
    if (finishReason === 'length') return this.#held.splice(0);
    const end = this.#held.findIndex(({ offset }) => offset >= this.#length);
    return this.#held.splice(0, end < 0 ? this.#held.length : end);
  }
}

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A token's text; bytes that are not whole characters are spelled out, as OpenAI's API does. */
function textOf(tokenizer: Tokenizer, id: number): { token: string; bytes: number[] } {
  const bytes = tokenizer.bytes(id) ?? new TextEncoder().encode(tokenizer.decode([id]));
  try {
    return { token: decoder.decode(bytes), bytes: [...bytes] };
  } catch {
    const hex = Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('');
    return { token: `bytes:${hex}`, bytes: [...bytes] };
  }
}

/** `logprobs` of a choice of a chat. */
export function chatLogprobs(tokenizer: Tokenizer, tokens: readonly PlacedToken[]): object {
  const entry = ({ id, logprob }: { id: number; logprob: number }) => ({ ...textOf(tokenizer, id), logprob });
  const content = tokens.flatMap(({ logprob }) =>
    logprob === null ? [] : [{ ...entry(logprob), top_logprobs: logprob.top.map(entry) }],
  );
  return { content, refusal: null };
}

/** `logprobs` of a choice of a completion. The token itself always stands among its `top_logprobs`. */
export function completionLogprobs(tokenizer: Tokenizer, tokens: readonly PlacedToken[]): object {
  const text = (id: number) => textOf(tokenizer, id).token;
  const top = ({ top, id, logprob }: TokenLogprob) => {
    const ranked = new Map<string, number>();
    for (const each of [...top, { id, logprob }]) {
      const token = text(each.id);
      // Two tokens may have the same text; the likelier one stands for it.
      if (!ranked.has(token)) ranked.set(token, each.logprob);
    }
    return Object.fromEntries(ranked);
  };
  return {
    tokens: tokens.map(({ id }) => text(id)),
    token_logprobs: tokens.map(({ logprob }) => logprob?.logprob ?? null),
    top_logprobs: tokens.map(({ logprob }) => (logprob === null ? null : top(logprob))),
    text_offset: tokens.map(({ offset }) => offset),
  };
}
