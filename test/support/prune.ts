/** Small runs of prune on the embedded model. */
import { join } from 'node:path';
import { type PruneOptions, type PruneResult, prune } from '../../lib/index.ts';
import { demoModel } from './models.ts';
import { temporaryFolder } from './raw-safetensors.ts';
import { randomFrom } from './steps.ts';

/** Token ids that look like nothing in particular. */
export function randomIds(seed: number, count: number, vocabulary = 4096): Uint32Array {
  const random = randomFrom(seed);
  return Uint32Array.from({ length: count }, () => Math.floor(random() * vocabulary));
}

export const calibration = randomIds(7, 8 * 64);
export const small = { model: demoModel, calibration, samples: 8, sequenceLength: 64 } as const;

/** Prunes into a folder that goes with the test. */
export async function pruned(options: Partial<PruneOptions> = {}): Promise<PruneResult> {
  return prune({ ...small, output: join(temporaryFolder(), 'pruned'), ...options });
}

export const isExpert = (name: string) => name.includes('.experts.');

/** Zeros of each row, of all columns or of each `group` of them. */
export function zerosOf(bits: Uint16Array | Uint32Array, group: number): number[] {
  const counts = [];
  for (let start = 0; start < bits.length; start += group) {
    let zeros = 0;
    for (let i = start; i < start + group; i++) if (bits[i] === 0) zeros++;
    counts.push(zeros);
  }
  return counts;
}
