/** Pruning with layers on a GPU against the CPU. Where there is no GPU, that is said, and only the refusals are tested. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { type PruneOptions, type PruneResult, perplexity } from '../lib/index.ts';
import { native } from '../lib/native.ts';
import { demoGoldens, families, familyFolder } from './support/models.ts';
import { isExpert, pruned, randomIds, small } from './support/prune.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { freshSeed } from './support/steps.ts';

const { devices, reason } = native().cudaDevices();
const hasGpu = devices.length > 0;
if (!hasGpu) console.log(`no layer is pruned on a GPU in this test: ${reason}`);

const calibrated: Partial<PruneOptions> = {
  calibration: join(demoGoldens, 'golden-calibration.u16'),
  samples: 16,
  sequenceLength: 512,
};

const perplexityOf = async ({ output }: PruneResult) =>
  (await perplexity({ model: output, data: join(demoGoldens, 'golden-eval.u16'), sequenceLength: 512, maxWindows: 20 }))
    .perplexity;

/** Weights of the experts that one has zeroed and the other has not, and those that both kept with other values. */
function differences(a: PruneResult, b: PruneResult): { size: number; masks: number; values: number } {
  using left = openCheckpoint(a.output);
  using right = openCheckpoint(b.output);
  const found = { size: 0, masks: 0, values: 0 };
  for (const name of [...left.names()].filter(isExpert)) {
    const [x, y] = [left, right].map((each) => new Uint16Array(each.read(name).slice().buffer)) as [
      Uint16Array,
      Uint16Array,
    ];
    found.size += x.length;
    for (let i = 0; i < x.length; i++) {
      if ((x[i] === 0) !== (y[i] === 0)) found.masks++;
      else if (x[i] !== y[i]) found.values++;
    }
  }
  return found;
}

test('a device that there is not is refused, and nothing is left', async () => {
  for (const device of ['gpu', 'cuda:', 'cuda:-1', 'cuda:x'] as PruneOptions['device'][]) {
    await expect(pruned({ device })).rejects.toMatchObject({ code: 'USAGE', field: 'device' });
  }
  const output = join(temporaryFolder(), 'pruned');
  await expect(pruned({ device: 'cuda:99', output })).rejects.toMatchObject({ code: 'DEVICE' });
  expect(existsSync(output)).toBe(false);
  if (!hasGpu) await expect(pruned({ device: 'cuda', output })).rejects.toThrow(reason);
});

describe.runIf(hasGpu)('on a GPU', () => {
  test.each([
    { method: 'wanda' },
    { method: 'moe-pruner' },
    { method: 'moe-pruner', pattern: '2:4' },
    { method: 'ria' },
    { stages: [{ weights: { method: 'wanda', layers: 'owl', experts: 'balanced' } }] },
  ] as Partial<PruneOptions>[])('%j keeps the weights that it keeps on the CPU, but for near ties', async (options) => {
    const wanted = await pruned({ ...calibrated, ...options });
    const found = await pruned({ ...calibrated, ...options, device: 'cuda' });
    const { size, masks, values } = differences(wanted, found);
    console.log(`${JSON.stringify(options)}: ${masks} of ${size} weights are zero in one of both only`);
    expect(values).toBe(0);
    // A token near a tie of its router goes to another expert, and moves that expert's sums a little.
    expect(masks / size).toBeLessThan(1e-3);
    expect(Math.abs((await perplexityOf(found)) / (await perplexityOf(wanted)) - 1)).toBeLessThan(0.001);
  });

  test.each(families)('%s keeps the weights that it keeps on the CPU, but for near ties', async (family) => {
    const model = join(familyFolder, family);
    const { vocab_size: vocabulary } = JSON.parse(readFileSync(join(model, 'config.json'), 'utf8'));
    const options = { model, calibration: randomIds(freshSeed(), 8 * 64, vocabulary), method: 'moe-pruner' } as const;
    const { size, masks, values } = differences(await pruned(options), await pruned({ ...options, device: 'cuda' }));
    expect(values).toBe(0);
    expect(masks / size).toBeLessThan(1e-3);
  });

  test.each([
    { method: 'sparsegpt' },
    { stages: [{ weights: { method: 'alps', routerWeighting: true } }] },
    { stages: [{ experts: { method: 'reap', ratio: 0.25 } }] },
    { stages: [{ weights: { method: 'wanda' } }, { recover: { epochs: 1 } }] },
  ] as Partial<PruneOptions>[])('%j comes to the perplexity of the CPU', async (options) => {
    const wanted = await perplexityOf(await pruned({ ...calibrated, ...options }));
    const found = await perplexityOf(await pruned({ ...calibrated, ...options, device: 'cuda' }));
    console.log(`${JSON.stringify(options)}: ${((100 * found) / wanted - 100).toFixed(4)} %`);
    expect(Math.abs(found / wanted - 1)).toBeLessThan(0.005);
  });

  test('has the same bytes in each run', async () => {
    const runs = [await pruned({ ...small, device: 'cuda' }), await pruned({ ...small, device: 'cuda' })] as const;
    expect(differences(...runs)).toMatchObject({ masks: 0, values: 0 });
  });
});
