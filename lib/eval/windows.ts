/** Log-likelihood of token windows, several in one batch. */
import { KV_BLOCK, KvSequence } from '../runtime/kv-blocks.ts';
import type { Model } from '../runtime/model.ts';

/** Tokens that run together, unless one window is longer. */
export const BATCH_TOKENS = 2048;

/**
 * Natural log-probabilities of the targets ids[1…] of each window, in order. Each window is scored with an empty cache;
 * the batch it runs in does not change its result. Throws `CONTEXT_FULL` if the model's cache cannot hold one window.
 */
export async function* scoreWindows(
  model: Model,
  windows: readonly Uint32Array[],
  signal?: AbortSignal,
): AsyncGenerator<Float64Array> {
  for (let first = 0; first < windows.length; ) {
    // Each window takes whole blocks of the cache.
    const room = Math.min(BATCH_TOKENS, model.kv.free * KV_BLOCK);
    let last = first;
    let tokens = 0;
    for (let taken = 0; last < windows.length; last++) {
      taken += cacheTokens(windows[last]!.length);
      if (last > first && taken > room) break;
      tokens += windows[last]!.length;
    }
    const batch = windows.slice(first, last);
    const scores = await scoreBatch(model, batch, tokens, signal);
    let offset = 0;
    for (const window of batch) {
      yield scores.subarray(offset, offset + window.length - 1);
      offset += window.length - 1;
    }
    first = last;
  }
}

/** What a window takes of the cache. */
export function cacheTokens(length: number): number {
  return Math.ceil(length / KV_BLOCK) * KV_BLOCK;
}

async function scoreBatch(
  model: Model,
  batch: readonly Uint32Array[],
  size: number,
  signal: AbortSignal | undefined,
): Promise<Float64Array> {
  const caches = batch.map(() => new KvSequence(model.kv));
  try {
    const tokens = new Int32Array(size);
    const rows: number[] = [];
    const targets: number[] = [];
    let offset = 0;
    for (const window of batch) {
      tokens.set(window, offset);
      for (let i = 0; i + 1 < window.length; i++) {
        rows.push(offset + i);
        targets.push(window[i + 1]!);
      }
      offset += window.length;
    }
    const slices = batch.map(({ length }, i) => ({ count: length, position: 0, blocks: caches[i]!.table(length) }));
    const scored = { scoreRows: Int32Array.from(rows), scoreTargets: Int32Array.from(targets) };
    return (await model.step({ tokens, slices, ...scored }, signal)).scores;
  } finally {
    for (const cache of caches) cache.release();
  }
}
