/** Budgets that differ by layer and by expert, and what they add up to. */
import { describe, expect, test } from 'vitest';
import { owlSparsities, owlSpread } from '../lib/prune/owl.ts';
import { resolveRecipe } from '../lib/prune/recipe.ts';
import { pruned } from './support/prune.ts';
import { errorOf } from './support/refusal.ts';

describe('OWL', () => {
  test('gives layers with more outliers less sparsity, linearly, and all together the target', () => {
    const [sizes, shares] = [
      [100, 300, 200],
      [0.01, 0.03, 0.02],
    ];
    const found = owlSparsities(shares, sizes, 0.7);
    expect(found[0]! - found[1]!).toBeCloseTo(2 * owlSpread, 12);
    expect(found[0]! - found[2]!).toBeCloseTo(owlSpread, 12);
    expect(found.reduce((sum, sparsity, i) => sum + sparsity * sizes[i]!, 0)).toBeCloseTo(0.7 * 600, 9);
  });

  test('meets the target where a layer can give no more, and where layers do not differ or have no experts', () => {
    const edge = owlSparsities([0, 1], [100, 100], 0.05);
    expect(Math.min(...edge)).toBe(0);
    expect(edge[0]! + edge[1]!).toBeCloseTo(0.1, 12);
    expect(owlSparsities([0.2, 0.2], [5, 9], 0.5).every((sparsity) => Math.abs(sparsity - 0.5) < 1e-12)).toBe(true);
    const [, second, third] = owlSparsities([0, 0.1, 0.1], [0, 5, 5], 0.5);
    expect(second).toBeCloseTo(0.5, 12);
    expect(third).toBeCloseTo(0.5, 12);
  });
});

test.each([{ layers: 'owl' }, { experts: 'balanced' }, { layers: 'owl', experts: 'balanced' }] as const)(
  'the whole model meets the budget: %o',
  async (shared) => {
    const result = await pruned({ stages: [{ weights: { method: 'sparsegpt', sparsity: 0.6, ...shared } }] });
    // Counts are rounded down in each block of 128 columns.
    expect(result.sparsity).toBeLessThanOrEqual(0.6001);
    expect(result.sparsity).toBeGreaterThan(0.599);
    const layers = new Set(result.layers.map(({ sparsity }) => sparsity.toFixed(3)));
    expect(layers.size > 1).toBe('layers' in shared);
    const experts = new Set(result.layers[0]!.experts.map(({ sparsity }) => sparsity.toFixed(3)));
    expect(experts.size > 1).toBe('experts' in shared);
  },
);

test.each([
  [{ method: 'sparsegpt', pattern: '2:4', layers: 'owl' }, 'stages.0.weights.layers'],
  [{ method: 'magnitude', experts: 'balanced' }, 'stages.0.weights.experts'],
] as const)('is refused where there is nothing to share out: %o', (weights, field) => {
  expect(errorOf(() => resolveRecipe({ stages: [{ weights }] }))).toMatchObject({ code: 'USAGE', field });
});
