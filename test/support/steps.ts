/** Drives the engine's batch step as its callers do. */
import type { NativeSample } from '../../lib/native.ts';
import { KvSequence } from '../../lib/runtime/kv-blocks.ts';
import type { Model } from '../../lib/runtime/model.ts';

/** A sequence whose tokens go through the engine in pieces of the caller's choice. */
export class Feed {
  readonly #model: Model;
  readonly #cache: KvSequence;
  length = 0;

  constructor(model: Model) {
    this.#model = model;
    this.#cache = new KvSequence(model.kv);
  }

  /** Takes a place in a batch for the next tokens. */
  slice(tokens: readonly number[]) {
    const position = this.length;
    this.length += tokens.length;
    return { tokens, count: tokens.length, position, blocks: this.#cache.table(this.length) };
  }

  release(): void {
    this.#cache.release();
    this.length = 0;
  }

  /** Runs tokens alone and returns the logits of each. */
  async logits(tokens: readonly number[]): Promise<Float32Array[]> {
    return (await runBatch(this.#model, [this.slice(tokens)]))[0]!;
  }
}

/** One step over several sequences; the logits of every token, sequence by sequence. */
export async function runBatch(
  model: Model,
  slices: readonly ReturnType<Feed['slice']>[],
  samples: readonly NativeSample[] = [],
): Promise<Float32Array[][]> {
  const tokens = Int32Array.from(slices.flatMap((slice) => slice.tokens));
  const logits = Int32Array.from(tokens, (_, row) => row);
  const result = await model.step({
    tokens,
    slices: slices.map(({ count, position, blocks }) => ({ count, position, blocks })),
    logits,
    samples,
  });
  const width = model.spec.vocabularySize;
  let row = 0;
  return slices.map(({ count }) =>
    Array.from({ length: count }, () => result.logits.slice(row * width, ++row * width)),
  );
}

/** Logits of every position of `ids`, in one step with an empty cache. */
export async function logitsOf(model: Model, ids: readonly number[]): Promise<Float32Array[]> {
  const feed = new Feed(model);
  try {
    return await feed.logits(ids);
  } finally {
    feed.release();
  }
}

/** Largest difference of two rows of logits, relative to the largest absolute logit of the second. */
export function difference(found: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (found.length !== wanted.length) return Number.NaN;
  let worst = 0;
  let scale = 0;
  for (let i = 0; i < wanted.length; i++) {
    worst = Math.max(worst, Math.abs(found[i]! - wanted[i]!));
    scale = Math.max(scale, Math.abs(wanted[i]!));
  }
  return worst / scale;
}

export async function collectIds(pieces: AsyncIterable<{ ids: readonly number[] }>): Promise<number[]> {
  const ids: number[] = [];
  for await (const piece of pieces) ids.push(...piece.ids);
  return ids;
}

/** Reproducible random numbers; a test prints the seed it draws. */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function freshSeed(): number {
  const seed = Number(process.env.ESPALIER_TEST_SEED ?? Math.floor(Math.random() * 2 ** 32));
  console.log(`ESPALIER_TEST_SEED=${seed}`);
  return seed;
}
