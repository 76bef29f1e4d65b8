/** What a pruning run takes of memory: what it was told it may, and what a dry run foresees. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { dryRun, type PruneOptions } from '../lib/index.ts';
import { memoryLimit } from '../lib/prune/memory.ts';
import { hashesOf } from './support/checkpoints.ts';
import { compiledLibrary } from './support/dist.ts';
import { demoModel } from './support/models.ts';
import { pruned, randomIds } from './support/prune.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { errorOf } from './support/refusal.ts';

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));

describe('the bytes of the result do not depend on memoryGiB', () => {
  const stages = {
    'router-weighted and shrunk': { weights: { method: 'sparsegpt', routerWeighting: true, pattern: '2:4' } },
    'balanced experts': { weights: { method: 'sparsegpt', sparsity: 0.6, experts: 'balanced' } },
    rounding: { quantize: { shrinkage: 0 } },
  } as const;
  test.each(Object.entries(stages))('%s', async (_, stage) => {
    const runs = [undefined, 0.001].map((memoryGiB) => pruned({ stages: [stage], memoryGiB }));
    const [all, one] = await Promise.all(runs);
    expect(hashesOf(one!.output)).toEqual(hashesOf(all!.output));
  });
});

test('memoryGiB must be above 0', () => {
  for (const memoryGiB of [0, -1, Number.NaN]) {
    expect(errorOf(() => memoryLimit({ memoryGiB }))).toMatchObject({ code: 'USAGE', field: 'memoryGiB' });
  }
});

test('the next layer is loaded ahead beside a GPU, where memory is enough', async () => {
  const options = { output: join(temporaryFolder(), 'pruned'), model: demoModel, method: 'magnitude' } as const;
  const { memory: onCpu } = await dryRun(options);
  const { memory } = await dryRun({ ...options, device: 'cuda' });
  const { memory: tight } = await dryRun({ ...options, device: 'cuda', memoryGiB: 0.001 });
  expect(onCpu.ahead).toBe(0);
  // The layer itself, as all are alike, and a matrix as float32.
  expect(memory.ahead).toBeGreaterThan(memory.weights);
  expect(memory.ahead).toBeLessThan(1.5 * memory.weights);
  expect(memory.peak).toBeGreaterThan(onCpu.peak);
  expect(tight).toEqual(onCpu);
});

test('a dry run foresees the peak, and it is lower where less may be taken', async () => {
  const folder = temporaryFolder();
  const model = join(folder, 'model');
  const dist = compiledLibrary();
  const shape = { layers: 1, hidden: 256, inner: 1536, experts: 16, heads: 4, 'kv-heads': 2, vocabulary: 512 };
  const flags = Object.entries(shape).flatMap(([name, size]) => [`--${name}`, String(size)]);
  execFileSync(process.execPath, [path('../bench/make-model.mjs'), model, ...flags], { stdio: 'ignore' });

  const found: { foreseen: number; measured: number; together: number }[] = [];
  for (const memoryGiB of [8, 0.001]) {
    const options = { model, method: 'sparsegpt', samples: 8, sequenceLength: 512, memoryGiB } as const;
    const run: PruneOptions = { ...options, output: join(folder, `pruned-${memoryGiB}`) };
    const { memory } = await dryRun({ ...run, calibration: randomIds(1, 4096, 512) });
    const child = [path('support/prune-memory-child.mjs'), dist, JSON.stringify({ ...run, tokens: 4096 })];
    const measured = Number(execFileSync(process.execPath, child, { encoding: 'utf8' }));
    found.push({ foreseen: memory.peak, measured, together: memory.together[0]! });
  }
  const [all, one] = found as [(typeof found)[0], (typeof found)[0]];
  const text = found.map(
    ({ foreseen, measured }) => `${(measured / 1e6).toFixed(0)} of ${(foreseen / 1e6).toFixed(0)}`,
  );
  console.log(`MB measured of foreseen: ${text.join(', ')}`);
  expect([all.together, one.together]).toEqual([16, 0]);
  for (const { foreseen, measured } of found) {
    expect(measured / foreseen).toBeGreaterThan(0.6);
    expect(measured / foreseen).toBeLessThan(1.1);
  }
  // The Gram matrices of fifteen experts lie between the two.
  expect(all.foreseen - one.foreseen).toBeGreaterThan(15 * 2 * (256 ** 2 + 1536 ** 2));
  // A process's peak swings by tens of megabytes with the moment at which memory goes back to the system.
  expect(all.measured - one.measured).toBeGreaterThan(0.3 * (all.foreseen - one.foreseen));
});
