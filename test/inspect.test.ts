/** What inspect says, against the weights themselves. */
import { describe, expect, test } from 'vitest';
import { openCheckpoint, toFloat32 } from '../lib/checkpoint/index.ts';
import { inspect } from '../lib/index.ts';
import { demoModel } from './support/models.ts';
import { isExpert, pruned } from './support/prune.ts';

/** Mean over a layer's expert matrices, which here are of one size, of E[((w − μ) / σ)⁴]. */
async function kurtosisOf(dir: string, layer: number, withZeros: boolean): Promise<number> {
  using checkpoint = openCheckpoint(dir);
  const found: number[] = [];
  for (const name of checkpoint.names()) {
    if (!name.startsWith(`model.layers.${layer}.`) || !isExpert(name)) continue;
    const source = checkpoint.source(name);
    const bytes = await source.read(
      0,
      source.shape.reduce((product, size) => product * size, 2),
    );
    const values = [...toFloat32(bytes, 'BF16')].filter((value) => withZeros || value !== 0);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const moment = (power: number) => values.reduce((sum, value) => sum + (value - mean) ** power, 0) / values.length;
    found.push(moment(4) / moment(2) ** 2);
  }
  return found.reduce((sum, value) => sum + value, 0) / found.length;
}

describe('the kurtosis of a layer', () => {
  test('is that of its expert weights', async () => {
    const { layers } = await inspect(demoModel);
    expect(layers[2]!.kurtosis.all).toBeCloseTo(await kurtosisOf(demoModel, 2, true), 6);
    expect(layers[2]!.kurtosis.kept).toBe(layers[2]!.kurtosis.all);
  });

  test('leaves out the zeros of a pruned one where it says so, however it is saved', async () => {
    const { output, layers: reports } = await pruned({ method: 'magnitude', sparsity: 0.5, save: 'sparse' });
    const { layers } = await inspect(output);
    expect(layers[1]!.kurtosis.all).toBeCloseTo(await kurtosisOf(output, 1, true), 6);
    expect(layers[1]!.kurtosis.kept).toBeCloseTo(await kurtosisOf(output, 1, false), 6);
    // Without the small weights what is left has two humps: flatter than before.
    const { kurtosis } = reports[1]!;
    expect(kurtosis.map(({ after }) => after)).toEqual([null, 'weights']);
    expect(kurtosis[1]!.kept).toBeLessThan(kurtosis[0]!.kept);
    expect(layers[1]!.kurtosis).toEqual({ all: kurtosis[1]!.all, kept: kurtosis[1]!.kept });
  });
});
