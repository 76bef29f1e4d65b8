/** Answers in the forms of completions and of chats, whole and in chunks. */
import type { GeneratedPiece } from '../runtime/generate.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { AnswerTokens, chatLogprobs, completionLogprobs, type PlacedToken } from './logprobs.ts';
import { type CallDelta, ToolCallReader } from './tools/reader.ts';
import type { ToolUse } from './tools/use.ts';

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
  constructor(tokenizer: Tokenizer | undefined, begin: number, specialTokens?: readonly string[]) {
    this.tokenizer = tokenizer;
    this.#answer = tokenizer === undefined ? undefined : new AnswerTokens(tokenizer, begin, specialTokens);
  }

  /** @param content What the piece adds to the answer's content. */
  push({ text, logprobs = [], finishReason }: GeneratedPiece, content: string): void {
    this.text += content;
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
    this.#collected.push(piece, piece.text);
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

/** A call as whole answers hold it. */
interface ToolCall {
  readonly id: string;
  readonly type: 'function';
  readonly function: { readonly name: string; arguments: string };
}

export class ChatWriter implements Writer {
  readonly #index: number;
  readonly #collected: Collected;
  readonly #reader: ToolCallReader | undefined;
  readonly #mostCalls: number;
  readonly #calls: ToolCall[] = [];

  /**
   * @param tokenizer Undefined where no log-probabilities are asked for.
   * @param use Undefined where the answer is read as text, whatever it holds.
   */
  constructor(index: number, tokenizer: Tokenizer | undefined, use: ToolUse | undefined) {
    this.#index = index;
    this.#collected = new Collected(tokenizer, 0, use?.form.specialTokens);
    this.#reader = use === undefined ? undefined : new ToolCallReader(use.form);
    this.#mostCalls = use?.several === false ? 1 : Number.POSITIVE_INFINITY;
  }

  opening(): object[] {
    return [this.#chunk({ role: 'assistant', content: '' })];
  }

  /** A chunk for content, and one for each part of a call; the last holds what concerns all of them. */
  delta(piece: GeneratedPiece): object[] {
    const calls = this.#read(piece);
    const fresh = this.#collected.flush();
    if (fresh === undefined && calls.length === 0) return [];
    const { text = '', tokens = [] } = fresh ?? {};
    const deltas: object[] = calls.map((call) => ({ tool_calls: [chunkOf(call)] }));
    if (text !== '' || calls.length === 0) deltas.unshift(text === '' ? {} : { content: text });
    const last = deltas.pop()!;
    return [...deltas.map((delta) => this.#chunk(delta)), { index: this.#index, delta: last, ...this.#rest(tokens) }];
  }

  take(piece: GeneratedPiece): void {
    this.#read(piece);
  }

  choice(): object {
    const { text, tokens } = this.#collected;
    const message =
      this.#calls.length === 0
        ? { role: 'assistant', content: text, refusal: null }
        : { role: 'assistant', content: text || null, refusal: null, tool_calls: this.#calls };
    return { index: this.#index, message, ...this.#rest(tokens) };
  }

  /** @returns What it adds to calls. */
  #read(piece: GeneratedPiece): CallDelta[] {
    if (this.#reader === undefined) {
      this.#collected.push(piece, piece.text);
      return [];
    }
    const { text, calls: read } = this.#reader.push(piece.text, piece.finishReason !== undefined);
    const calls = read.filter(({ index }) => index < this.#mostCalls);
    for (const { index, opening, arguments: given } of calls) {
      if (opening !== undefined) {
        this.#calls.push({ id: opening.id, type: 'function', function: { name: opening.name, arguments: '' } });
      }
      this.#calls[index]!.function.arguments += given;
    }
    // What stands around calls is not content.
    this.#collected.push(piece, this.#calls.length > 0 && text.trim() === '' ? '' : text);
    return calls;
  }

  #chunk(delta: object): object {
    return { index: this.#index, delta, logprobs: null, finish_reason: null };
  }

  #rest(tokens: readonly PlacedToken[]): object {
    const { tokenizer, finishReason } = this.#collected;
    const isCall = finishReason === 'stop' && this.#calls.length > 0;
    return {
      logprobs: tokenizer === undefined ? null : chatLogprobs(tokenizer, tokens),
      finish_reason: isCall ? 'tool_calls' : finishReason,
    };
  }
}

function chunkOf({ index, opening, arguments: given }: CallDelta): object {
  if (opening === undefined) return { index, function: { arguments: given } };
  return { index, id: opening.id, type: 'function', function: { name: opening.name, arguments: given } };
}
