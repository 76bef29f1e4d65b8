/** Log-likelihood of token windows, several in one batch. */
import { type NativeEngine, native, runJob } from '../native.ts';
import type { KvBlockPool } from '../runtime/kv-blocks.ts';
import { KvSequence } from '../runtime/kv-blocks.ts';

/** Tokens that run together, unless one window is longer. */
const BATCH_TOKENS = 2048;

/** Natural log-probabilities of the targets ids[1…] of one window. */
export interface WindowScores {
  readonly index: number;
  readonly scores: Float64Array;
}

/** Scores each window on its own, with an empty cache. */
export async function* scoreWindows(
  engine: NativeEngine,
  pool: KvBlockPool,
  windows: readonly Uint32Array[],
  signal?: AbortSignal,
): AsyncGenerator<WindowScores> {
  for (let first = 0; first < windows.length; ) {
    let last = first;
    let tokens = 0;
    while (last < windows.length && (last === first || tokens + windows[last]!.length <= BATCH_TOKENS)) {
      tokens += windows[last++]!.length;
    }
    const batch = windows.slice(first, last);
    const scores = await scoreBatch(engine, pool, batch, tokens, signal);
    let offset = 0;
    for (const [i, window] of batch.entries()) {
      yield { index: first + i, scores: scores.subarray(offset, offset + window.length - 1) };
      offset += window.length - 1;
    }
    first = last;
  }
}

async function scoreBatch(
  engine: NativeEngine,
  pool: KvBlockPool,
  batch: readonly Uint32Array[],
  tokens: number,
  signal: AbortSignal | undefined,
): Promise<Float64Array> {
  const sequences = batch.map(() => new KvSequence(pool));
  try {
    const ids = new Int32Array(tokens);
    const rows: number[] = [];
    const targets: number[] = [];
    let offset = 0;
    for (const window of batch) {
      ids.set(window, offset);
      for (let i = 0; i + 1 < window.length; i++) {
        rows.push(offset + i);
        targets.push(window[i + 1]!);
      }
      offset += window.length;
    }
    const slices = batch.map((window, i) => ({
      count: window.length,
      position: 0,
      blocks: sequences[i]!.table(window.length),
    }));
    const step = { tokens: ids, slices, scoreRows: Int32Array.from(rows), scoreTargets: Int32Array.from(targets) };
    return (await runJob(() => native().engineStep(engine, step), signal)).scores;
  } finally {
    for (const sequence of sequences) sequence.release();
  }
}
