/** Continuous batching: sequences join and leave between steps, and every step runs what is ready of all of them. */
import { throwIfAborted } from '../abort.ts';
import { EspalierError } from '../errors.ts';
import type { NativeSample, NativeStep, NativeStepResult } from '../native.ts';
import { checkCanFit, type PlanLimits, PlannedSequence, planStep } from './batch-plan.ts';
import type { KvBlockPool } from './kv-blocks.ts';
import type { ResolvedSampling } from './sampling.ts';

/** What is generated, and who takes it. */
export interface Generation {
  /** Tokens of the prompt, at least one. */
  readonly ids: readonly number[];
  readonly sampling: ResolvedSampling;
  /** Takes the next token; returns false when no more are wanted. */
  accept(id: number): boolean;
  /** Whether a token would be taken now. Whoever says no must call `wake` when that changes. */
  ready(): boolean;
  readonly signal?: AbortSignal | undefined;
}

/** A generation under way. */
export interface Ticket {
  /**
   * Resolves when the generation has ended and its blocks are free. Rejects with `ABORTED`, `CONTEXT_FULL` where the cache
   * cannot hold it, and what a step throws.
   */
  readonly done: Promise<void>;
  /** Ends it without an error, at the latest after the step that runs. */
  cancel(): void;
  /** To be called when `ready` turns true again. */
  wake(): void;
}

type RunStep = (step: NativeStep, signal: AbortSignal) => Promise<NativeStepResult>;

class Running extends PlannedSequence {
  readonly generation: Generation;
  readonly settle: { resolve(): void; reject(error: unknown): void };
  cancelled = false;

  constructor(generation: Generation, pool: KvBlockPool, settle: Running['settle']) {
    super(generation.ids, pool);
    this.generation = generation;
    this.settle = settle;
  }

  get isOver(): boolean {
    return this.cancelled || this.generation.signal?.aborted === true;
  }
}

export class Scheduler {
  readonly #run: RunStep;
  readonly #pool: KvBlockPool;
  readonly #limits: PlanLimits;
  readonly #running: Running[] = [];
  readonly #waiting: Running[] = [];
  #isLooping = false;
  /** Of the step that runs. */
  #step: { readonly sequences: readonly Running[]; readonly control: AbortController } | undefined;

  constructor(run: RunStep, pool: KvBlockPool, limits: PlanLimits) {
    this.#run = run;
    this.#pool = pool;
    this.#limits = limits;
  }

  /** Sequences that have blocks of the cache, and those that wait for some. */
  get load(): { readonly running: number; readonly waiting: number } {
    return { running: this.#running.length, waiting: this.#waiting.length };
  }

  /** Queues a generation. @throws CONTEXT_FULL for a prompt that can never fit, ABORTED */
  start(generation: Generation): Ticket {
    const { signal, ids } = generation;
    throwIfAborted(signal);
    checkCanFit(ids.length, this.#pool);
    let sequence: Running | undefined;
    const done = new Promise<void>((resolve, reject) => {
      sequence = new Running(generation, this.#pool, { resolve, reject });
    });
    const queued = sequence!;
    this.#waiting.push(queued);
    const notice = () => this.#notice();
    signal?.addEventListener('abort', notice, { once: true });
    const forget = () => signal?.removeEventListener('abort', notice);
    done.then(forget, forget);
    this.#wake();
    return {
      done,
      cancel: () => {
        queued.cancelled = true;
        this.#notice();
      },
      wake: () => this.#wake(),
    };
  }

  /** Stops the step where nobody waits for it any more. */
  #notice(): void {
    if (this.#step?.sequences.every(({ isOver }) => isOver)) this.#step.control.abort();
    this.#wake();
  }

  #wake(): void {
    if (this.#isLooping) return;
    this.#isLooping = true;
    void this.#loop().finally(() => {
      this.#isLooping = false;
    });
  }

  async #loop(): Promise<void> {
    for (;;) {
      // Whoever took a token of the last step may want another of this one.
      await new Promise(setImmediate);
      this.#removeOver();
      const plan = planStep(this.#running, this.#waiting, this.#pool, this.#limits, ({ generation }) =>
        generation.ready(),
      );
      for (const sequence of plan.stuck) this.#end(sequence, stuck(sequence, this.#pool));
      if (plan.slices.length === 0) {
        if (plan.stuck.length > 0) continue;
        return;
      }
      const control = new AbortController();
      this.#step = { sequences: plan.slices.map(({ sequence }) => sequence), control };
      try {
        const sampled = plan.slices.filter(({ sequence, count }) => sequence.pending === count);
        const { samples } = await this.#run(stepOf(plan.slices), control.signal);
        for (const { sequence, count } of plan.slices) sequence.advance(count);
        for (const [i, { sequence }] of sampled.entries()) this.#deliver(sequence, samples[i]!);
      } catch (error) {
        for (const { sequence } of plan.slices) if (!sequence.isOver) this.#end(sequence, error);
      } finally {
        this.#step = undefined;
      }
    }
  }

  #deliver(sequence: Running, id: number): void {
    if (sequence.isOver) return;
    sequence.ids.push(id);
    let wantsMore = false;
    try {
      wantsMore = sequence.generation.accept(id);
    } catch (error) {
      this.#end(sequence, error);
      return;
    }
    if (!wantsMore) this.#end(sequence);
  }

  #removeOver(): void {
    for (const sequence of [...this.#running, ...this.#waiting]) {
      if (!sequence.isOver) continue;
      const { signal } = sequence.generation;
      if (sequence.cancelled) this.#end(sequence);
      else this.#end(sequence, new EspalierError('ABORTED', 'stopped on request', { cause: signal?.reason }));
    }
  }

  #end(sequence: Running, error?: unknown): void {
    for (const list of [this.#running, this.#waiting]) {
      const at = list.indexOf(sequence);
      if (at >= 0) list.splice(at, 1);
    }
    sequence.vacate();
    if (error === undefined) sequence.settle.resolve();
    else sequence.settle.reject(error);
  }
}

function stepOf(slices: readonly { sequence: Running; count: number; blocks: Int32Array }[]): NativeStep {
  const tokens: number[] = [];
  const samples: NativeSample[] = [];
  const step = slices.map(({ sequence, count, blocks }) => {
    const { cached: position, ids, pending, generation } = sequence;
    tokens.push(...ids.slice(position, position + count));
    if (count === pending) samples.push(sampleRequest(tokens.length - 1, ids, generation.sampling));
    return { count, position, blocks };
  });
  return { tokens: Int32Array.from(tokens), slices: step, samples };
}

function sampleRequest(row: number, ids: readonly number[], sampling: ResolvedSampling): NativeSample {
  const { temperature, topK, topP, minP, repetitionPenalty, seed } = sampling;
  const history = repetitionPenalty === 1 ? {} : { history: Int32Array.from(ids) };
  // The draw is numbered by its position, so that the same context and seed give the same token.
  return { row, temperature, topK, topP, minP, repetitionPenalty, seed, step: ids.length, ...history };
}

function stuck({ ids }: Running, pool: KvBlockPool): EspalierError {
  return new EspalierError(
    'CONTEXT_FULL',
    `the KV cache has no room for token ${ids.length} of a sequence: ${pool.free} of its ${pool.size} blocks are free; ` +
      'load the model with a larger kvTokens',
  );
}
