/** From a request to the pieces of its answers. */
import { randomInt } from 'node:crypto';
import type { FinishReason, GeneratedPiece, GenerateOptions } from '../runtime/generate.ts';
import type { Model } from '../runtime/model.ts';
import { contextExceeded, HttpError } from './errors.ts';
import { type RequestedFormat, renameFormat } from './formats.ts';
import type { CommonRequest } from './schemas.ts';

/** Tokens of the prompts and of all answers. */
export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
}

/** What a request comes to. */
export interface Work {
  readonly prompts: readonly (readonly number[])[];
  /** What the request allows an answer; undefined: what the context has room for. */
  readonly maxTokens: number | undefined;
  /** Most likely tokens to report; undefined: no log-probabilities. */
  readonly topLogprobs: number | undefined;
  readonly format: RequestedFormat | undefined;
  /** As of `generate`. */
  readonly specialTokens?: readonly string[] | undefined;
}

/** A piece of one of the answers. */
export interface AnswerPiece extends GeneratedPiece {
  /** Number of the answer. */
  readonly index: number;
}

/** Every prompt is answered `n` times; answer i · n + j is the j-th of prompt i. */
export class Answers {
  readonly #model: Model;
  readonly #prompts: readonly (readonly number[])[];
  readonly #n: number;
  readonly #options: GenerateOptions;
  readonly #seed: number;
  readonly #formatParam: string | undefined;
  readonly #onToken: (index: number) => void;
  /** Of the answers that have ended. */
  readonly finishReasons: FinishReason[] = [];
  #completionTokens = 0;

  /**
   * @param context Tokens of a prompt and its answer.
   * @param onToken Told of each token, with the number of its answer.
   * @throws HttpError 400 where a prompt and its answer do not fit the context
   */
  constructor(
    model: Model,
    context: number,
    { prompts, maxTokens, topLogprobs, format, specialTokens }: Work,
    request: CommonRequest,
    signal: AbortSignal,
    onToken: (index: number) => void,
  ) {
    const longest = Math.max(...prompts.map(({ length }) => length));
    if (longest + (maxTokens ?? 1) > context) {
      const wish = maxTokens === undefined ? 'an answer' : `${maxTokens} tokens of answer`;
      throw new HttpError(
        400,
        `a prompt of ${longest} tokens and ${wish} do not fit the context of ${context} tokens`,
        {
          param: maxTokens === undefined ? 'prompt' : 'max_tokens',
          code: contextExceeded,
        },
      );
    }
    this.#model = model;
    this.#formatParam = format?.param;
    this.#onToken = onToken;
    this.#prompts = prompts;
    this.#n = request.n ?? 1;
    this.#seed = request.seed ?? randomInt(2 ** 47);
    this.#options = {
      temperature: request.temperature ?? 1,
      topP: request.top_p ?? undefined,
      topK: request.top_k ?? undefined,
      minP: request.min_p ?? undefined,
      repetitionPenalty: request.repetition_penalty ?? undefined,
      presencePenalty: request.presence_penalty ?? undefined,
      frequencyPenalty: request.frequency_penalty ?? undefined,
      logitBias: request.logit_bias ?? undefined,
      topLogprobs,
      format: format?.format,
      specialTokens,
      stop: request.stop ?? undefined,
      ignoreEos: request.ignore_eos ?? undefined,
      maxTokens: maxTokens ?? context - longest,
      signal,
    };
  }

  /** The prompt that an answer is to. */
  promptOf(index: number): number {
    return Math.floor(index / this.#n);
  }

  get count(): number {
    return this.#prompts.length * this.#n;
  }

  get usage(): Usage {
    const prompt = this.#prompts.reduce((sum, { length }) => sum + length, 0);
    return {
      prompt_tokens: prompt,
      completion_tokens: this.#completionTokens,
      total_tokens: prompt + this.#completionTokens,
    };
  }

  /** The pieces of all answers as they come. Ending it early ends them. */
  async *pieces(): AsyncGenerator<AnswerPiece, void> {
    if (this.#options.maxTokens === 0) {
      for (let index = 0; index < this.count; index++)
        yield this.#note({ index, text: '', ids: [], finishReason: 'length' });
      return;
    }
    const sources = Array.from({ length: this.count }, (_, index) => {
      const prompt = this.#prompts[this.promptOf(index)]!;
      return this.#model.generate(prompt, { ...this.#options, seed: this.#seed + (index % this.#n) });
    });
    const next = async (index: number) => ({ index, result: await sources[index]!.next() });
    const pending = new Map(sources.map((_, index) => [index, next(index)]));
    try {
      while (pending.size > 0) {
        const { index, result } = await Promise.race(pending.values());
        if (result.done) {
          pending.delete(index);
          continue;
        }
        pending.set(index, next(index));
        this.#onToken(index);
        yield this.#note({ index, ...result.value });
      }
    } catch (error) {
      throw this.#formatParam === undefined ? error : renameFormat(error, this.#formatParam);
    } finally {
      for (const source of sources) void source.return().catch(() => {});
    }
  }
  #note(piece: AnswerPiece): AnswerPiece {
    this.#completionTokens += piece.ids.length;
    if (piece.finishReason !== undefined) this.finishReasons.push(piece.finishReason);
    return piece;
  }
}
