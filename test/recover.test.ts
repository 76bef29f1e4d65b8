/** The stage that trains the experts after their weights were pruned. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type Manifest, type PruneOptions, perplexity, prune } from '../lib/index.ts';
import type { StageOptions } from '../lib/prune/stages/index.ts';
import { bitsOf, hashesOf, tensorsOf } from './support/checkpoints.ts';
import { demoGoldens, demoModel, familyFolder } from './support/models.ts';
import { isExpert, randomIds, zerosOf } from './support/prune.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';

/** 64 wide, four experts of which a token goes to two; every expert sees enough tokens to be trained. */
const small = {
  model: join(familyFolder, 'mixtral-window'),
  calibration: randomIds(11, 32 * 64, 128),
  samples: 32,
  sequenceLength: 64,
} as const;

async function recovered(stages: readonly StageOptions[], options: Partial<PruneOptions> = {}) {
  return await prune({ ...small, output: join(temporaryFolder(), 'recovered'), stages, ...options });
}

const weights = { weights: { method: 'wanda', sparsity: 0.5 } } as const;

describe('recovery', () => {
  test('never leaves a layer worse than it was on held-out tokens, and makes some better', async () => {
    const { layers, output } = await recovered([weights, { recover: { epochs: 3, batch: 256 } }]);
    const recoveries = layers.map(({ experts }) => experts.find(({ recovery }) => recovery != null)!.recovery!);
    for (const { before, after } of recoveries) expect(after).toBeLessThanOrEqual(before);
    expect(recoveries.some(({ before, after, epoch }) => epoch > 0 && after < 0.9 * before)).toBe(true);
    const manifest = JSON.parse(readFileSync(join(output, 'espalier.json'), 'utf8')) as Manifest;
    expect(manifest.layers).toEqual(layers);
  });

  test('keeps n of every m', async () => {
    const stages = [{ weights: { method: 'wanda', pattern: '2:4' } }, { recover: { epochs: 1, batch: 256 } }] as const;
    const { output } = await recovered(stages);
    let seen = 0;
    for (const [name, tensor] of tensorsOf(output)) {
      if (!isExpert(name)) continue;
      expect(Math.min(...new Set(zerosOf(bitsOf(tensor), 4))), name).toBeGreaterThanOrEqual(2);
      seen++;
    }
    expect(seen).toBe(2 * 4 * 3);
  });

  test('leaves each expert its number of zeros where it chooses them anew', async () => {
    const stages = [weights, { recover: { epochs: 7, batch: 128, zeros: 'gradual' } }] as const;
    const plain = await recovered([weights]);
    const { layers } = await recovered(stages);
    for (const [l, { experts }] of layers.entries()) {
      for (const [e, { zeros, size }] of experts.entries()) {
        expect(Math.abs(zeros - plain.layers[l]!.experts[e]!.zeros)).toBeLessThan(1e-3 * size);
      }
    }
  });

  test('gives the same bytes for any number of threads', async () => {
    const stages = [weights, { recover: { epochs: 1, batch: 256 } }] as const;
    const [one, three] = [await recovered(stages, { threads: 1 }), await recovered(stages, { threads: 3 })];
    expect(hashesOf(three.output)).toEqual(hashesOf(one.output));
  });

  test('says which experts saw too few tokens to be trained', async () => {
    const stages = [weights, { recover: { epochs: 1 } }] as const;
    const told = ({ warnings }: { warnings: readonly string[] }) =>
      warnings.filter((warning) => warning.includes('too few to train it'));
    expect(told(await recovered(stages))).toHaveLength(0);
    const few = await recovered(stages, { samples: 1 });
    const untrained = few.layers.flatMap(({ experts }) => experts.filter(({ recovery }) => recovery === null));
    expect(untrained.length).toBeGreaterThan(0);
    expect(told(few)).toHaveLength(untrained.length);
  });

  test('stops when it is told to and goes on from the last finished layer to the same bytes', async () => {
    const stages = [weights, { recover: { epochs: 2, batch: 256 } }] as const;
    const whole = await recovered(stages);
    const output = join(temporaryFolder(), 'stopped');
    const options = { ...small, output, stages };
    const stop = new AbortController();
    const stopped = prune({
      ...options,
      signal: stop.signal,
      onProgress: (event) => {
        if (event.type === 'stage' && event.layer === 1 && event.stage === 'recover' && event.fraction > 0.5)
          stop.abort();
      },
    });
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
    const resumed = await prune({ ...options, resume: true });
    expect(resumed.resumedLayers).toBe(1);
    expect(hashesOf(output)).toEqual(hashesOf(whole.output));
  });
});

describe('recovery of a layer with fewer experts', () => {
  const bytes = readFileSync(join(demoGoldens, 'golden-calibration.u16'));
  const ids = Uint32Array.from(new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2));
  const options = { model: demoModel, calibration: ids.slice(0, 2048), samples: 8, sequenceLength: 256 } as const;
  const heldOut = { data: ids.slice(-1024), sequenceLength: 256 };
  const recover = { recover: { epochs: 2, batch: 256 } } as const;

  test.each([
    ['removed', { method: 'reap' }],
    ['merged, stored once for every row', { method: 'm-smoe', saveMerges: 'repeat' }],
  ] as const)('makes up for experts that were %s, on text that it never saw', async (_, method) => {
    const experts = { experts: { ...method, ratio: 0.25 } } as const;
    const without = await recovered([experts, weights], options);
    const { layers, output } = await recovered([experts, weights, recover], options);
    for (const layer of layers) {
      const { before, after } = layer.experts.find(({ recovery }) => recovery != null)!.recovery!;
      expect(after).toBeLessThan(before);
    }
    expect(layers.map(({ experts: left }) => left.length)).toEqual(
      without.layers.map(({ experts: left }) => left.length),
    );
    const [pruned, trained] = [
      await perplexity({ ...heldOut, model: without.output }),
      await perplexity({ ...heldOut, model: output }),
    ];
    console.log(`perplexity ${pruned.perplexity.toFixed(1)}, recovered ${trained.perplexity.toFixed(1)}`);
    expect(trained.perplexity).toBeLessThan(pruned.perplexity);
  });

  test('goes on after a stop to the same bytes', async () => {
    const stages = [
      { experts: { method: 'hc-smoe', ratio: 0.5 } },
      weights,
      { recover: { epochs: 1, batch: 256 } },
    ] as const;
    const whole = await recovered(stages);
    const output = join(temporaryFolder(), 'stopped');
    const stop = new AbortController();
    const stopped = prune({
      ...{ ...small, output, stages, signal: stop.signal },
      onProgress: (event) => {
        if (event.type === 'stage' && event.layer === 1 && event.stage === 'recover') stop.abort();
      },
    });
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
    const resumed = await prune({ ...small, output, stages, resume: true });
    expect(resumed.resumedLayers).toBe(1);
    expect(hashesOf(output)).toEqual(hashesOf(whole.output));
  });
});
