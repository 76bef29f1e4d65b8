/** Continuous batching: sequences join and leave between steps, and every step runs what is ready of all of them. */
import { throwIfAborted } from '../abort.ts';
import { EspalierError } from '../errors.ts';
import type { NativeStep, NativeStepResult } from '../native.ts';
import { checkCanFit, type PlanLimits, PlannedSequence, type PlannedSlice, planStep } from './batch-plan.ts';
import type { KvBlockPool } from './kv-blocks.ts';
import { StepBuilder } from './step-builder.ts';
import type { TakeResult, Task } from './tasks.ts';

/** A task under way. */
export interface Ticket {
  /**
   * Resolves when the task has ended and its blocks are free. Rejects with `ABORTED`, `CONTEXT_FULL` where the cache
   * cannot hold it, and what a step throws.
   */
  readonly done: Promise<void>;
  /** Ends it without an error, at the latest after the step that runs. */
  cancel(): void;
  /** To be called when `ready` turns true again. */
  wake(): void;
}

/** Longest that a step is held up for sequences that are nearly ready. */
const PATIENCE_MS = 5;

type RunStep = (step: NativeStep, signal: AbortSignal) => Promise<NativeStepResult>;

class Running extends PlannedSequence {
  readonly task: Task;
  readonly settle: { resolve(): void; reject(error: unknown): void };
  cancelled = false;

  constructor(task: Task, pool: KvBlockPool, settle: Running['settle']) {
    super(task.ids, pool);
    this.task = task;
    this.settle = settle;
  }

  override get reusable(): number {
    return this.task.reusable(this.ids);
  }

  get isOver(): boolean {
    return this.cancelled || this.task.signal?.aborted === true;
  }
}

export class Scheduler {
  readonly #run: RunStep;
  readonly #pool: KvBlockPool;
  readonly #limits: PlanLimits;
  readonly #running: Running[] = [];
  readonly #waiting: Running[] = [];
  #isLooping = false;
  /** Since the beginning: sequences that had to start again, tokens of admitted ones, and how many of these the cache had. */
  readonly totals = { preemptions: 0, admittedTokens: 0, cachedTokens: 0 };
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

  /** Queues a task. @throws CONTEXT_FULL for a prompt that can never fit, ABORTED */
  start(task: Task): Ticket {
    const { signal, ids } = task;
    throwIfAborted(signal);
    checkCanFit(ids.length, this.#pool);
    let sequence: Running | undefined;
    const done = new Promise<void>((resolve, reject) => {
      sequence = new Running(task, this.#pool, { resolve, reject });
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
    // Whoever comes in the same moment joins the first step.
    await new Promise(setImmediate);
    for (;;) {
      await this.#settle();
      this.#removeOver();
      const plan = planStep(this.#running, this.#waiting, this.#pool, this.#limits, ({ task }) => task.ready());
      this.totals.preemptions += plan.preempted.length;
      for (const { ids, cached } of plan.admitted) {
        this.totals.admittedTokens += ids.length;
        this.totals.cachedTokens += cached;
      }
      for (const sequence of plan.stuck) this.#end(sequence, stuck(sequence, this.#pool));
      if (plan.slices.length === 0) {
        if (plan.stuck.length > 0) continue;
        return;
      }
      const control = new AbortController();
      this.#step = { sequences: plan.slices.map(({ sequence }) => sequence), control };
      try {
        const builder = new StepBuilder();
        const takers = plan.slices.map((slice) => ({ ...slice, take: ask(builder, slice) }));
        const result = await this.#run(builder.step, control.signal);
        for (const { sequence, count, take } of takers) {
          sequence.advance(count);
          if (!sequence.isOver) this.#deliver(sequence, () => take(result));
        }
      } catch (error) {
        for (const { sequence } of plan.slices) if (!sequence.isOver) this.#end(sequence, error);
      } finally {
        this.#step = undefined;
      }
    }
  }

  /** Waits a little for sequences that will be ready in no time, so that they do not miss the step. */
  async #settle(): Promise<void> {
    const pending = this.#running.map(({ task }) => task.pending?.()).filter((each) => each !== undefined);
    if (pending.length === 0) return;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, PATIENCE_MS);
    });
    await Promise.race([Promise.all(pending), late]);
    clearTimeout(timer);
  }

  #deliver(sequence: Running, take: () => boolean): void {
    let goesOn = false;
    try {
      goesOn = take();
    } catch (error) {
      this.#end(sequence, error);
      return;
    }
    if (!goesOn) this.#end(sequence);
  }

  #removeOver(): void {
    for (const sequence of [...this.#running, ...this.#waiting]) {
      if (!sequence.isOver) continue;
      const { signal } = sequence.task;
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

function ask(step: StepBuilder, { sequence, count, blocks }: PlannedSlice<Running>): TakeResult {
  const { cached: position, ids, task } = sequence;
  const row = step.slice(ids.slice(position, position + count), position, blocks);
  return task.ask(step, { ids, position, count, row });
}

function stuck({ ids }: Running, pool: KvBlockPool): EspalierError {
  return new EspalierError(
    'CONTEXT_FULL',
    `the KV cache has no room for token ${ids.length} of a sequence: ${pool.free} of its ${pool.size} blocks are free; ` +
      'load the model with a larger kvTokens',
  );
}
