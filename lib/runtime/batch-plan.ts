/** Which tokens of which sequences run in the next step. */
import { EspalierError } from '../errors.ts';
import { KV_BLOCK, type KvBlockPool, KvSequence } from './kv-blocks.ts';
import { PrefixKeys } from './prefix-keys.ts';

/** A sequence as the plan sees it; `ids` grows by a token whenever all of them are cached. */
export class PlannedSequence {
  readonly ids: number[];
  readonly kv: KvSequence;
  readonly #keys = new PrefixKeys();
  /** Tokens whose keys and values are in the cache. */
  cached = 0;

  constructor(ids: readonly number[], pool: KvBlockPool) {
    this.ids = [...ids];
    this.kv = new KvSequence(pool);
  }

  /** Tokens that must run before the next one can be drawn. */
  get pending(): number {
    return this.ids.length - this.cached;
  }

  /** Tokens at the beginning that need not run if the cache has them; fewer than there are. */
  get reusable(): number {
    return this.ids.length - 1;
  }

  /** Takes up what the cache knows of its beginning. */
  reusePrefix(): void {
    this.cached = this.kv.reuse(this.#keys.upTo(this.ids, this.reusable));
  }

  /** `count` more tokens are in the cache; blocks that they filled become known. */
  advance(count: number): void {
    const before = Math.floor(this.cached / KV_BLOCK);
    this.cached += count;
    for (const [i, key] of this.#keys.upTo(this.ids, this.cached).entries()) if (i >= before) this.kv.publish(i, key);
  }

  /** Gives its blocks back; it can start again. */
  vacate(): void {
    this.kv.release();
    this.cached = 0;
  }
}

export interface PlanLimits {
  /** Tokens of a step. */
  readonly stepTokens: number;
  /** Sequences that have blocks at a time. */
  readonly maxSequences: number;
}

/** One sequence's share of a step: its next `count` tokens, and its block table for them. */
export interface PlannedSlice<S> {
  readonly sequence: S;
  readonly count: number;
  readonly blocks: Int32Array;
}

export interface Plan<S> {
  readonly slices: PlannedSlice<S>[];
  /** Sequences that got blocks, with what the cache knew of them. */
  readonly admitted: S[];
  /** Sequences that gave theirs back and wait again. */
  readonly preempted: S[];
  /** Sequences that cannot go on: even alone they need more blocks than are free. */
  readonly stuck: S[];
}

/**
 * Plans a step. Sequences that decode go first, then prompts, in the order of arrival, in chunks that fit the step; so a long
 * prompt does not hold the others up. A waiting sequence is admitted when all blocks for its tokens are free, none before
 * those that came earlier. Where blocks run out, the sequence that came last gives its own back and waits again.
 *
 * `running` and `waiting` are in the order of arrival, and are changed. Sequences that `isReady` says no to hold their blocks
 * and are left out.
 */
export function planStep<S extends PlannedSequence>(
  running: S[],
  waiting: S[],
  pool: KvBlockPool,
  { stepTokens, maxSequences }: PlanLimits,
  isReady: (sequence: S) => boolean,
): Plan<S> {
  const slices: PlannedSlice<S>[] = [];
  const admitted: S[] = [];
  const preempted: S[] = [];
  const stuck: S[] = [];
  let room = stepTokens;

  const add = (sequence: S) => {
    const count = Math.min(room, sequence.pending);
    slices.push({ sequence, count, blocks: sequence.kv.table(sequence.cached + count) });
    room -= count;
  };
  /** Makes sure of the blocks for a sequence's next tokens, at the cost of later ones. */
  const fits = (sequence: S): boolean => {
    const count = Math.min(room, sequence.pending);
    while (sequence.kv.missing(sequence.cached + count) > pool.free) {
      const last = running.at(-1)!;
      const isAlone = last === sequence && running.length === 1;
      running.pop();
      const planned = slices.findIndex((slice) => slice.sequence === last);
      if (planned >= 0) room += slices.splice(planned, 1)[0]!.count;
      last.vacate();
      (isAlone ? stuck : preempted).push(last);
      if (!isAlone) waiting.unshift(last);
      if (last === sequence) return false;
    }
    return true;
  };

  const ready = running.filter(isReady);
  for (const sequence of [...ready.filter(isDecoding), ...ready.filter((each) => !isDecoding(each))]) {
    if (room === 0) break;
    if (running.includes(sequence) && fits(sequence)) add(sequence);
  }
  const wereVacated = stuck.length > 0;
  while (!wereVacated && room > 0 && running.length < maxSequences) {
    const next = waiting[0];
    if (next === undefined) break;
    next.reusePrefix();
    if (next.kv.missing(next.ids.length) > pool.free) {
      next.vacate();
      break;
    }
    waiting.shift();
    running.push(next);
    admitted.push(next);
    if (isReady(next)) add(next);
  }
  // The blocks are somebody else's, who will not say when they are free again.
  const first = waiting[0];
  if (!wereVacated && running.length === 0 && first !== undefined) {
    waiting.shift();
    stuck.push(first);
  }
  return { slices, admitted, preempted, stuck };
}

function isDecoding(sequence: PlannedSequence): boolean {
  return sequence.pending === 1;
}

/** @throws CONTEXT_FULL for tokens that no cache of this size can hold */
export function checkCanFit(tokens: number, pool: KvBlockPool): void {
  const needed = Math.ceil(tokens / KV_BLOCK);
  if (needed <= pool.size) return;
  throw new EspalierError(
    'CONTEXT_FULL',
    `${tokens} tokens need ${needed} blocks of the KV cache, which has ${pool.size}; load the model with a larger kvTokens`,
  );
}
