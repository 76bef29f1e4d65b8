/** `route` of espalier/kernels: what its options mean, by float64 arithmetic written out here; every option refused where it does not fit. */
import { describe, expect, test } from 'vitest';
import { EspalierError } from '../lib/index.ts';
import { type RouteOptions, route } from '../lib/kernels.ts';
import { freshSeed, randomFrom } from './support/steps.ts';

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

/** The smallest difference between two of the values. */
function margin(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return Math.min(...sorted.slice(1).map((value, i) => value - (sorted[i] ?? 0)));
}

/**
 * DeepSeek-V3's choice in float64: groups by their two best, then the best of what is left. `margin`: how much values that
 * are compared differ at least.
 */
function reference(logits: number[], options: RouteOptions) {
  const { topK, nGroup = 1, topkGroup = 1, routedScalingFactor = 1, correctionBias } = options;
  const exponentials = logits.map(Math.exp);
  const total = exponentials.reduce((sum, e) => sum + e, 0);
  const scores = options.scoringFunc === 'sigmoid' ? logits.map(sigmoid) : exponentials.map((e) => e / total);
  const keys = scores.map((score, i) => score + (correctionBias?.[i] ?? 0));
  const size = logits.length / nGroup;
  const goodness = Array.from({ length: nGroup }, (_, g) => {
    const [best = 0, second = 0] = keys.slice(g * size, (g + 1) * size).toSorted((a, b) => b - a);
    return { g, sum: best + second };
  });
  const kept = goodness.toSorted((a, b) => b.sum - a.sum).slice(0, topkGroup);
  const allowed = new Set(kept.map(({ g }) => g));
  const experts = keys
    .map((key, i) => ({ key, i }))
    .filter(({ i }) => allowed.has(Math.floor(i / size)))
    .toSorted((a, b) => b.key - a.key)
    .slice(0, topK)
    .map(({ i }) => i);
  const chosen = experts.map((i) => scores[i] ?? Number.NaN);
  const divisor = options.renormalise ? chosen.reduce((sum, score) => sum + score, 0) : 1;
  return {
    experts,
    gates: chosen.map((score) => (score / divisor) * routedScalingFactor),
    margin: Math.min(margin(keys), margin(goodness.map(({ sum }) => sum))),
  };
}

describe('route', () => {
  const random = randomFrom(freshSeed());
  const cases: [string, Partial<RouteOptions>][] = [
    ['softmax', {}],
    ['softmax, renormalised', { renormalise: true }],
    ['sigmoid', { scoringFunc: 'sigmoid' }],
    ['sigmoid with bias', { scoringFunc: 'sigmoid', correctionBias: Float32Array.from({ length: 32 }, random) }],
    ['groups', { scoringFunc: 'sigmoid', nGroup: 8, topkGroup: 3 }],
    ['softmax in groups', { nGroup: 4, topkGroup: 2 }],
    [
      'all of DeepSeek-V3',
      {
        scoringFunc: 'sigmoid',
        nGroup: 8,
        topkGroup: 4,
        renormalise: true,
        routedScalingFactor: 2.5,
        correctionBias: Float32Array.from({ length: 32 }, () => random() / 10),
      },
    ],
  ];
  test.each(cases)('%s: experts and gates of float64', (_, given) => {
    const options = { topK: 4, ...given };
    const tokens: number[][] = [];
    while (tokens.length < 20) {
      const logits = Array.from({ length: 32 }, () => Math.fround(random() * 6 - 3));
      // What float32 cannot tell apart is no test.
      if (reference(logits, options).margin > 1e-6) tokens.push(logits);
    }
    const { experts, gates } = route(Float32Array.from(tokens.flat()), 32, options);
    expect(experts).toHaveLength(20 * 4);
    for (const [t, logits] of tokens.entries()) {
      const wanted = reference(logits, options);
      expect([...experts.slice(t * 4, t * 4 + 4)], `token ${t}`).toEqual(wanted.experts);
      for (const [k, gate] of wanted.gates.entries()) expect(gates[t * 4 + k]).toBeCloseTo(gate, 5);
    }
  });

  test('equal logits go to the experts with the lowest ids', () => {
    expect([...route(new Float32Array(256), 256, { topK: 8 }).experts]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  });

  test.each<[string, Partial<RouteOptions>]>([
    ['no expert', { topK: 0 }],
    ['more experts than there are', { topK: 9 }],
    ['groups of unequal size', { nGroup: 3 }],
    ['more groups kept than there are', { nGroup: 2, topkGroup: 3 }],
    ['more experts than the kept groups hold', { topK: 3, nGroup: 4 }],
    ['a bias of the wrong size', { correctionBias: new Float32Array(7) }],
    ['an unknown scoring', { scoringFunc: 'tanh' as 'softmax' }],
    ['a factor that is no number', { routedScalingFactor: Number.NaN }],
  ])('%s: USAGE', (_, given) => {
    const attempt = () => route(new Float32Array(8), 8, { topK: 2, ...given });
    expect(attempt).toThrow(EspalierError);
    expect(attempt).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });
});
