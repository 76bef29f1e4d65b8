/** Answers in the forms of completions and of chats, whole and in chunks. */
import type { GeneratedPiece } from '../runtime/generate.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { AnswerTokens, chatLogprobs, completionLogprobs, type PlacedToken } from './logprobs.ts';

/** Writes one answer. A piece goes either to `delta` or to `take`. */
export interface Writer {
  /** Choices of the chunks that a stream begins with. */
  opening(): object[];
  /** Choices of chunks for a piece. */
  delta(piece: GeneratedPiece): object[];
  take(piece: GeneratedPiece): void;
  /** The choice of a whole answer. */
  choice(): object;
}

/** The prompt as an answer repeats it. */
export interface Echo {
  readonly text: string;
  /** Undefined where no log-probabilities are asked for. */
  readonly tokens: readonly PlacedToken[] | undefined;
}

/** Collects an answer's text, its tokens where log-probabilities are asked for, and its end. */
class Collected {
  readonly tokenizer: Tokenizer | undefined;
  text = '';
  tokens: PlacedToken[] = [];
  finishReason: string | null = null;
  readonly #answer: AnswerTokens | undefined;

  /** @param tokenizer Undefined where no log-probabilities are asked for. */
  constructor(tokenizer: Tokenizer | undefined, begin: number) {
    this.tokenizer = tokenizer;
    this.#answer = tokenizer === undefined ? undefined : new AnswerTokens(tokenizer, begin);
  }

  push({ text, logprobs = [], finishReason }: GeneratedPiece): void {
    this.text += text;
    this.tokens.push(...(this.#answer?.push(text, logprobs, finishReason) ?? []));
    this.finishReason = finishReason ?? null;
  }

  /** What has come since the last call; undefined for nothing. */
  flush(): { text: string; tokens: PlacedToken[] } | undefined {
    const { text, tokens } = this;
    if (text === '' && tokens.length === 0 && this.finishReason === null) return undefined;
    this.text = '';
    this.tokens = [];
    return { text, tokens };
  }
}

export class CompletionWriter implements Writer {
  readonly #index: number;
  readonly #echo: Echo | undefined;
  readonly #collected: Collected;

  /** @param tokenizer Undefined where no log-probabilities are asked for. */
  constructor(index: number, tokenizer: Tokenizer | undefined, echo: Echo | undefined) {
    this.#index = index;
    this.#echo = echo;
    this.#collected = new Collected(tokenizer, [...(echo?.text ?? '')].length);
  }

  opening(): object[] {
    return this.#echo === undefined ? [] : [this.#form(this.#echo.text, this.#echo.tokens ?? [], null)];
  }

  delta(piece: GeneratedPiece): object[] {
    this.take(piece);
    const fresh = this.#collected.flush();
    return fresh === undefined ? [] : [this.#form(fresh.text, fresh.tokens, this.#collected.finishReason)];
  }

  take(piece: GeneratedPiece): void {
    this.#collected.push(piece);
  }

  choice(): object {
    const { text, tokens, finishReason } = this.#collected;
    const { text: echo = '', tokens: echoed = [] } = this.#echo ?? {};
    return this.#form(echo + text, [...echoed, ...tokens], finishReason);
  }

  #form(text: string, tokens: readonly PlacedToken[], finish_reason: string | null): object {
    const { tokenizer } = this.#collected;
    const logprobs = tokenizer === undefined ? null : completionLogprobs(tokenizer, tokens);
    return { index: this.#index, text, logprobs, finish_reason };
  }
}

export class ChatWriter implements Writer {
  readonly #index: number;
  readonly #collected: Collected;

  /** @param tokenizer Undefined where no log-probabilities are asked for. */
  constructor(index: number, tokenizer: Tokenizer | undefined) {
    this.#index = index;
    this.#collected = new Collected(tokenizer, 0);
  }

  opening(): object[] {
    return [{ index: this.#index, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null }];
  }

  delta(piece: GeneratedPiece): object[] {
    this.take(piece);
    const fresh = this.#collected.flush();
    if (fresh === undefined) return [];
    const delta = fresh.text === '' ? {} : { content: fresh.text };
    return [{ index: this.#index, delta, ...this.#rest(fresh.tokens) }];
  }

  take(piece: GeneratedPiece): void {
    this.#collected.push(piece);
  }

  choice(): object {
    const { text: content, tokens } = this.#collected;
    return { index: this.#index, message: { role: 'assistant', content, refusal: null }, ...this.#rest(tokens) };
  }

  #rest(tokens: readonly PlacedToken[]): object {
    const { tokenizer, finishReason } = this.#collected;
    return {
      logprobs: tokenizer === undefined ? null : chatLogprobs(tokenizer, tokens),
      finish_reason: finishReason,
    };
  }
}
