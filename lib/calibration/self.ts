/** Calibration text that the model writes itself, for users who have none. */

import { KvSequence } from '../runtime/kv-blocks.ts';
import type { Model } from '../runtime/model.ts';

export interface SelfCalibrationOptions {
  samples: number;
  /** Tokens of each, the start token included. */
  sequenceLength: number;
  seed: number;
  signal?: AbortSignal | undefined;
  /** Tokens written, of how many. */
  onProgress?: ((done: number, total: number) => void) | undefined;
}

/** Sequences written together: a batch step costs little more than a single one. */
const TOGETHER = 64;

/**
 * Samples sequences from the model at temperature 1, starting from its start (or end) token and going on past ends of
 * text. The same seed gives the same sequences on the same instruction set.
 */
export async function selfCalibration(model: Model, options: SelfCalibrationOptions): Promise<Uint32Array[]> {
  const { samples, sequenceLength, seed, signal } = options;
  const sequences: Uint32Array[] = [];
  for (let first = 0; first < samples; first += TOGETHER) {
    const count = Math.min(TOGETHER, samples - first);
    sequences.push(
      ...(await writeTogether(
        model,
        count,
        sequenceLength,
        BigInt(seed) * 0x1_0000_0000n + BigInt(first),
        signal,
        (done) =>
          options.onProgress?.((first + (done / sequenceLength) * count) * sequenceLength, samples * sequenceLength),
      )),
    );
  }
  return sequences;
}

async function writeTogether(
  model: Model,
  count: number,
  length: number,
  seed: bigint,
  signal: AbortSignal | undefined,
  onTokens: (done: number) => void,
): Promise<Uint32Array[]> {
  const start = model.spec.bosTokenId ?? model.spec.eosTokenIds[0] ?? 0;
  const texts = Array.from({ length: count }, () => new Uint32Array(length).fill(start, 0, 1));
  const caches = texts.map(() => new KvSequence(model.kv));
  try {
    for (let position = 0; position + 1 < length; position++) {
      const result = await model.step(
        {
          tokens: Int32Array.from(texts, (text) => text[position]!),
          slices: caches.map((cache) => ({ count: 1, position, blocks: cache.table(position + 1) })),
          samples: texts.map((_, row) => ({
            row,
            temperature: 1,
            topK: 0,
            topP: 1,
            minP: 0,
            seed: BigInt.asUintN(64, seed + BigInt(row)),
            step: position,
          })),
        },
        signal,
      );
      for (const [i, text] of texts.entries()) text[position + 1] = result.samples[i]!;
      onTokens(position + 2);
    }
    return texts;
  } finally {
    for (const cache of caches) cache.release();
  }
}
