/** Puts together what one step of the engine is asked, and reads what each asked for out of the result. */
import type { NativeSample, NativeSlice, NativeStep, NativeStepResult } from '../native.ts';
import type { RankedToken, TokenLogprob } from './logprobs.ts';

/** A token that was drawn, and its log-probability where the sample had `top`. */
export interface DrawnToken {
  readonly id: number;
  readonly logprob: TokenLogprob | undefined;
}

export class StepBuilder {
  readonly #tokens: number[] = [];
  readonly #slices: NativeSlice[] = [];
  readonly #samples: NativeSample[] = [];
  readonly #scoreRows: number[] = [];
  readonly #scoreTargets: number[] = [];
  #sampleTops = 0;
  /** The engine reports as many for every score as any of them wants. */
  #scoreTop = 0;

  /** Adds a sequence's next tokens; returns the row of the first. */
  slice(tokens: readonly number[], position: number, blocks: Int32Array): number {
    const row = this.#tokens.length;
    this.#tokens.push(...tokens);
    this.#slices.push({ count: tokens.length, position, blocks });
    return row;
  }

  /** Asks for a token; returns what reads it. */
  sample(sample: NativeSample): (result: NativeStepResult) => DrawnToken {
    const index = this.#samples.push(sample) - 1;
    const { top } = sample;
    const begin = this.#sampleTops;
    this.#sampleTops += top ?? 0;
    return (result) => {
      const id = result.samples[index]!;
      if (top === undefined) return { id, logprob: undefined };
      return { id, logprob: { id, logprob: result.sampleScores[index]!, top: ranked(result, begin, top) } };
    };
  }

  /** Asks for the log-probability of `target` after the token of a row; returns what reads it. */
  score(row: number, target: number, top: number): (result: NativeStepResult) => TokenLogprob {
    const index = this.#scoreRows.push(row) - 1;
    this.#scoreTargets.push(target);
    this.#scoreTop = Math.max(this.#scoreTop, top);
    return (result) => {
      const begin = this.#sampleTops + index * this.#scoreTop;
      return { id: target, logprob: result.scores[index]!, top: ranked(result, begin, top) };
    };
  }

  get step(): NativeStep {
    return {
      tokens: Int32Array.from(this.#tokens),
      slices: this.#slices,
      samples: this.#samples,
      scoreRows: Int32Array.from(this.#scoreRows),
      scoreTargets: Int32Array.from(this.#scoreTargets),
      scoreTop: this.#scoreTop,
    };
  }
}

function ranked({ topIds, topScores }: NativeStepResult, begin: number, count: number): RankedToken[] {
  return Array.from({ length: count }, (_, i) => ({ id: topIds[begin + i]!, logprob: topScores[begin + i]! }));
}
