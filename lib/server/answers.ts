/** From a request to the pieces of its answers. */
import { randomInt } from 'node:crypto';
import type { GeneratedPiece, GenerateOptions } from '../runtime/generate.ts';
import type { Model } from '../runtime/model.ts';
import { contextExceeded, HttpError } from './errors.ts';
import type { CommonRequest } from './schemas.ts';

/** Tokens of the prompts and of all answers. */
export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
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
  readonly #onToken: (index: number) => void;
  #completionTokens = 0;

  /**
   * @param context Tokens of a prompt and its answer.
   * @param maxTokens What the request allows an answer, or the server where it says nothing.
   * @param onToken Told of each token, with the number of its answer.
   * @throws HttpError 400 where a prompt and its answer do not fit the context
   */
  constructor(
    model: Model,
    context: number,
    prompts: readonly (readonly number[])[],
    request: CommonRequest,
    maxTokens: number | undefined,
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
      stop: request.stop ?? undefined,
      ignoreEos: request.ignore_eos ?? undefined,
      maxTokens: maxTokens ?? context - longest,
      signal,
    };
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
    const sources = Array.from({ length: this.count }, (_, index) => {
      const prompt = this.#prompts[Math.floor(index / this.#n)]!;
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
        this.#completionTokens += result.value.ids.length;
        this.#onToken(index);
        yield { index, ...result.value };
      }
    } finally {
      for (const source of sources) void source.return().catch(() => {});
    }
  }

  /** All answers whole. */
  async whole(): Promise<{ readonly text: string; readonly finishReason: 'stop' | 'length' }[]> {
    const answers = Array.from({ length: this.count }, () => ({ text: '', finishReason: 'stop' as 'stop' | 'length' }));
    for await (const { index, text, finishReason } of this.pieces()) {
      const answer = answers[index]!;
      answer.text += text;
      if (finishReason !== undefined) answer.finishReason = finishReason;
    }
    return answers;
  }
}
