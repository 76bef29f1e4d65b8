/** What sequences run for: to go on with a text, or to say how likely it is. */
import type { NativeLogitRules, NativeSample, NativeStepResult } from '../native.ts';
import type { Constraint } from './constraint.ts';
import type { TokenLogprob } from './logprobs.ts';
import type { ResolvedSampling } from './sampling.ts';
import type { StepBuilder } from './step-builder.ts';

/** A sequence's next tokens in a step: `ids` is all of it, of which `count` from `position` on run, the first in `row`. */
export interface TaskSlice {
  readonly ids: number[];
  readonly position: number;
  readonly count: number;
  readonly row: number;
}

/** Takes the result of a step, appends a token to `ids` where one came, and returns whether the sequence goes on. */
export type TakeResult = (result: NativeStepResult) => boolean;

export interface Task {
  /** Tokens to begin with, at least one. */
  readonly ids: readonly number[];
  readonly signal?: AbortSignal | undefined;
  /** Tokens at the beginning that need not run if the cache has them; fewer than there are. */
  reusable(ids: readonly number[]): number;
  /** Whether a result would be taken now. Whoever says no must call `wake` when that changes. */
  ready(): boolean;
  /** Settles when `ready` may turn true without anybody's doing; undefined where that is not to be expected. */
  pending?(): Promise<void> | undefined;
  /** Adds to the step what it wants to know. */
  ask(step: StepBuilder, slice: TaskSlice): TakeResult;
}

export interface Generation {
  readonly ids: readonly number[];
  readonly sampling: ResolvedSampling;
  /** Which tokens may come. */
  readonly constraint?: Constraint | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Takes the next token, with its log-probability where `topLogprobs` is set; returns false when no more are wanted. */
  accept(id: number, logprob: TokenLogprob | undefined): boolean;
  ready(): boolean;
}

/** Draws a token whenever all others are cached. */
export class GenerationTask implements Task {
  readonly #generation: Generation;

  constructor(generation: Generation) {
    this.#generation = generation;
  }

  get ids(): readonly number[] {
    return this.#generation.ids;
  }

  get signal(): AbortSignal | undefined {
    return this.#generation.signal;
  }

  /** The last token always runs, because the next is drawn from it. */
  reusable(ids: readonly number[]): number {
    return ids.length - 1;
  }

  ready(): boolean {
    const { constraint } = this.#generation;
    return this.#generation.ready() && (constraint === undefined || constraint.mask !== undefined);
  }

  pending(): Promise<void> | undefined {
    return this.#generation.ready() ? this.#generation.constraint?.pending : undefined;
  }

  ask(step: StepBuilder, { ids, position, count, row }: TaskSlice): TakeResult {
    if (position + count < ids.length) return () => true;
    const drawn = step.sample(this.#sample(row + count - 1, ids));
    return (result) => {
      const { id, logprob } = drawn(result);
      ids.push(id);
      return this.#generation.accept(id, logprob);
    };
  }

  #sample(row: number, ids: readonly number[]): NativeSample {
    const { temperature, topK, topP, minP, seed, topLogprobs } = this.#generation.sampling;
    // The draw is numbered by its position, so that the same context and seed give the same token.
    const draw = { row, temperature, topK, topP, minP, seed, step: ids.length };
    return { ...draw, rules: this.#rules(ids), top: topLogprobs };
  }

  #rules(ids: readonly number[]): NativeLogitRules | undefined {
    const { repetitionPenalty, presencePenalty, frequencyPenalty, logitBias } = this.#generation.sampling;
    const isPenalised = repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
    const mask = this.#generation.constraint?.mask;
    if (!isPenalised && logitBias.size === 0 && mask === undefined) return undefined;
    return {
      repetitionPenalty,
      presencePenalty,
      frequencyPenalty,
      biasIds: Int32Array.from(logitBias.keys()),
      biasValues: Float32Array.from(logitBias.values()),
      mask,
      history: isPenalised ? Int32Array.from(ids) : new Int32Array(),
      answerBegin: isPenalised ? this.ids.length : 0,
    };
  }
}

/** Finds the log-probability of each token of a text but the first. */
export class ScoringTask implements Task {
  /** The last token's row would tell what follows it, which nobody asks. */
  readonly ids: readonly number[];
  readonly signal?: AbortSignal | undefined;
  /** Of token i + 1. */
  readonly scores: TokenLogprob[] = [];
  readonly #text: readonly number[];
  readonly #top: number;

  /** @param text At least two tokens. */
  constructor(text: readonly number[], top: number, signal?: AbortSignal) {
    this.#text = text;
    this.#top = top;
    this.ids = text.slice(0, -1);
    this.signal = signal;
  }

  /** Of what is cached nothing is left to score; after a new start, what was scored need not run again. */
  reusable(): number {
    return Math.min(this.scores.length, this.ids.length - 1);
  }

  ready(): boolean {
    return true;
  }

  ask(step: StepBuilder, { position, count, row }: TaskSlice): TakeResult {
    const takes = Array.from({ length: count }, (_, i) =>
      step.score(row + i, this.#text[position + i + 1]!, this.#top),
    );
    return (result) => {
      for (const [i, take] of takes.entries()) this.scores[position + i] = take(result);
      return position + count < this.ids.length;
    };
  }
}
