/** Which experts each method chooses, by hand and against the plain way to decide. */
import { describe, expect, test } from 'vitest';
import { isEspalierError } from '../lib/errors.ts';
import type { NativeSurvey } from '../lib/native.ts';
import { checkAmount, keptOf, keptOfAll } from '../lib/prune/experts/count.ts';
import { averageLinkage, clustersOf, euclidean, strictMerges } from '../lib/prune/experts/linkage.ts';
import { hcSmoe, mSmoe } from '../lib/prune/experts/merging.ts';
import { bestSet, checkSets, countSets } from '../lib/prune/experts/naee.ts';
import { averaging, sharing } from '../lib/prune/experts/plan.ts';
import { keepHighest, randomScores } from '../lib/prune/experts/scores.ts';
import { dissimilarity, stunClusters, stunPlan } from '../lib/prune/experts/stun.ts';
import { type RoutedPart, scoresBy } from '../lib/prune/experts/survey.ts';
import { freshSeed, randomFrom } from './support/steps.ts';

const kept = ({ experts }: { experts: readonly (readonly { expert: number }[])[] }) =>
  experts.map((members) => members.map(({ expert }) => expert));

function emptySurvey(experts: number, changes: Partial<NativeSurvey> = {}): NativeSurvey {
  return {
    tokens: 100,
    topK: 2,
    experts,
    family: new Float64Array(experts * 9),
    coactivation: new Float64Array(experts * experts),
    probabilities: new Float64Array(experts),
    logitProducts: new Float64Array(experts * experts),
    meanOutputs: new Float64Array(0),
    losses: new Float64Array(0),
    gateRatios: new Float64Array(1),
    ...changes,
  };
}

/** A family whose number of tokens is `counts`. */
function withCounts(counts: readonly number[]): Float64Array {
  return Float64Array.from({ length: counts.length * 9 }, (_, i) => (i % 9 === 0 ? counts[i / 9]! : 0));
}

const symmetric = (n: number, value: (i: number, j: number) => number) =>
  Float64Array.from({ length: n * n }, (_, at) => {
    const [i, j] = [Math.floor(at / n), at % n];
    return i === j ? 0 : value(Math.min(i, j), Math.max(i, j));
  });

describe('how many experts stay', () => {
  test('a ratio is rounded down to whole experts, as it was written', () => {
    expect(keptOf({ ratio: 0.25 }, 8)).toBe(6);
    expect(keptOf({ ratio: 0.3 }, 8)).toBe(6);
    expect(keptOf({ ratio: 0.29 }, 100)).toBe(71);
    expect(keptOf({ ratio: 0.99 }, 8)).toBe(1);
    expect(keptOf({ ratio: 0 }, 8)).toBe(8);
    expect(keptOfAll({ ratio: 0.203 }, Array(35).fill(128))).toBe(4480 - 909);
  });

  test.each([
    ['a ratio of 1', () => checkAmount(1, undefined), 'ratio'],
    ['a negative ratio', () => checkAmount(-0.1, undefined), 'ratio'],
    ['no expert kept', () => checkAmount(undefined, 0), 'keep'],
    ['half an expert kept', () => checkAmount(undefined, 1.5), 'keep'],
    ['both', () => checkAmount(0.5, 2), 'keep'],
    ['more kept than there are', () => keptOf({ keep: 9 }, 8), 'keep'],
    ['layers without any left', () => keptOfAll({ ratio: 0.9 }, [4, 4, 4]), 'ratio'],
    ['too many sets', () => checkSets(32, 24, 0), 'method'],
  ])('%s is a USAGE error that names the option', (_, call, field) => {
    try {
      call();
    } catch (error) {
      if (!isEspalierError(error)) throw error;
      expect([error.code, error.field]).toEqual(['USAGE', field]);
      return;
    }
    expect.unreachable('it must be refused');
  });
});

describe('scores', () => {
  test('the family is a mean over tokens or a sum, and 0 without tokens', () => {
    // Expert 0: tokens with (gate, norm) (0.5, 2) and (0.25, 4); expert 1: none.
    const family = new Float64Array(18);
    for (const [g, f] of [
      [0.5, 2],
      [0.25, 4],
    ] as const) {
      for (let a = 0; a < 3; a++) for (let b = 0; b < 3; b++) family[3 * a + b]! += g ** a * f ** b;
    }
    const survey = emptySurvey(2, { family });
    expect(scoresBy({ b: 0, alpha: 0, beta: 0 }, survey)).toEqual([2, 0]);
    expect(scoresBy({ b: 0, alpha: 0, beta: 1 }, survey)).toEqual([6, 0]);
    expect(scoresBy({ b: 1, alpha: 1, beta: 1 }, survey)).toEqual([1, 0]);
    expect(scoresBy({ b: 1, alpha: 0, beta: 1 }, survey)).toEqual([3, 0]);
    expect(scoresBy({ b: 1, alpha: 0, beta: 2 }, survey)).toEqual([10, 0]);
    expect(scoresBy({ b: 0, alpha: 2, beta: 2 }, survey)).toEqual([2, 0]);
  });

  test('the highest stay in their old order, of equal ones the lower index', () => {
    const [plan] = keepHighest([[3, 1, 2, 2, 2, 5]], { keep: 3 }, 'uniform');
    expect(plan).toEqual({
      experts: [0, 2, 5].map((expert) => [{ expert, weight: 1 }]),
      routerRows: [[0], [2], [5]],
      expertOfRow: [0, 1, 2],
      align: false,
    });
  });

  test('over all layers scores count relative to their layer, and every layer keeps its best', () => {
    const plans = keepHighest(
      [
        [1, 2, 3, 2],
        [1000, 10, 20, 10],
        [5, 5, 5, 5],
      ],
      { ratio: 0.5 },
      'global',
    );
    // Means 2, 260 and 5: after the best of each, five scores are equal to the mean, and the first three of these stay.
    expect(plans.map(kept)).toEqual([[[1], [2], [3]], [[0]], [[0], [1]]]);
  });

  test('random ones follow from the seed', () => {
    expect(randomScores(1, 2, 0, 8)).toEqual(randomScores(1, 2, 0, 8));
    expect(randomScores(1, 2, 0, 8)).not.toEqual(randomScores(2, 2, 0, 8));
    expect(randomScores(1, 2, 0, 8)).not.toEqual(randomScores(1, 3, 0, 8));
  });
});

describe('naee', () => {
  test('a set is found from its place in lexicographic order', () => {
    const sets: number[][] = [];
    for (let a = 0; a < 6; a++) for (let b = a + 1; b < 6; b++) for (let c = b + 1; c < 6; c++) sets.push([a, b, c]);
    expect(countSets(6, 3)).toBe(sets.length);
    for (const [place, set] of sets.entries()) {
      const losses = sets.map((_, i) => (i === place ? 1 : 2));
      expect(bestSet(losses, 6, 3)).toEqual(set);
    }
    expect(bestSet([2, 1, 1], 3, 2)).toEqual([0, 2]);
  });
});

describe('clusters', () => {
  /** As the paper's code goes about it: the smallest entry again and again, entries struck out by infinity. */
  function plainClusters(distances: Float64Array, n: number, threshold: number, fewest: number): string[] {
    const d = Array.from({ length: n }, (_, i) =>
      Array.from({ length: n }, (_, j) => (i === j ? Number.POSITIVE_INFINITY : distances[i * n + j]!)),
    );
    const label = Array.from({ length: n }, (_, i) => i);
    const members = (of: number) => label.flatMap((own, i) => (own === label[of] ? [i] : []));
    for (;;) {
      let [v1, v2] = [0, 0];
      for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) if (d[i]![j]! < d[v1]![v2]!) [v1, v2] = [i, j];
      if (!(d[v1]![v2]! < threshold) || new Set(label).size <= fewest) break;
      const cross = [...members(v1).map((c) => [c, v2]), ...members(v2).map((c) => [c, v1])] as [number, number][];
      const isClose = Math.max(...cross.map(([c, v]) => d[c]![v]!)) < threshold;
      for (const [i, j] of isClose ? cross : ([[v1, v2]] as const)) d[i]![j] = d[j]![i] = Number.POSITIVE_INFINITY;
      if (!isClose) continue;
      const [into, from] = [label[v1]!, label[v2]!];
      for (let i = 0; i < n; i++) if (label[i] === from) label[i] = into;
    }
    return [...new Set(label.map((_, i) => members(i).join(' ')))].sort();
  }

  test('by the rule of STUN are those of the plain algorithm', () => {
    const random = randomFrom(freshSeed());
    let merged = 0;
    for (let round = 0; round < 200; round++) {
      const n = 2 + Math.floor(random() * 9);
      // Ties in every third.
      const draw = () => (round % 3 === 0 ? Math.ceil(random() * 4) : random() * 4);
      const values = Array.from({ length: n * n }, draw);
      const distances = symmetric(n, (i, j) => values[i * n + j]!);
      const [threshold, fewest] = [random() * 5, 1 + Math.floor(random() * 3)];
      const found = clustersOf(n, strictMerges(distances, n, threshold, fewest));
      expect(found.map((cluster) => cluster.join(' ')).sort()).toEqual(plainClusters(distances, n, threshold, fewest));
      merged += n - found.length;
    }
    expect(merged).toBeGreaterThan(100);
  });

  test('one threshold for all layers leaves as many as was asked, in each layer what its distances say', () => {
    const random = randomFrom(freshSeed());
    const counts = [8, 8, 8];
    const distancesOf = (widths: number[]) =>
      widths.map((width, layer) =>
        euclidean(Array.from({ length: counts[layer]! }, () => [random() * width, random() * width])),
      );
    const distances = distancesOf([1, 2, 3]);
    for (const ratio of [0.125, 0.25, 0.5, 0.75]) {
      const clusters = stunClusters(distances, counts, { ratio }, 'global');
      expect(clusters.flat().length).toBe(24 * (1 - ratio));
      for (const own of clusters) expect(own.flat().sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
      const uniform = stunClusters(distances, counts, { ratio }, 'uniform');
      expect(uniform.map(({ length }) => length)).toEqual(counts.map((n) => n * (1 - ratio)));
    }
    // The layer whose experts are closest loses most: here all of its own are closer than any of the last.
    const [first, , last] = stunClusters(distancesOf([1, 1e3, 1e6]), counts, { ratio: 0.5 }, 'global');
    expect(first!.length).toBeLessThan(last!.length);
  });

  test('similarity is of router rows, and of coactivation relative to its mean', () => {
    const part: RoutedPart = {
      layer: 0,
      part: 0,
      experts: 3,
      routerRows: [Float64Array.of(0, 0), Float64Array.of(3, 4), Float64Array.of(0, 1)],
      survey: emptySurvey(3, { coactivation: Float64Array.of(0, 6, 2, 6, 0, 1, 2, 1, 0) }),
    };
    expect([...dissimilarity(part, 2, 0)]).toEqual([0, 10, 2, 10, 0, 2 * Math.sqrt(18), 2, 2 * Math.sqrt(18), 0]);
    const [, near, , , , far] = dissimilarity(part, 1, 0.5);
    expect(near).toBeCloseTo(5 - (0.5 * 6) / 3, 12);
    expect(far).toBeCloseTo(Math.sqrt(18) - 0.5 / 3, 12);
  });

  test('the representative is nearest to the mean; with fewer clusters than kappa it is the mean', () => {
    const clusters = [[0, 3, 4], [1], [2, 5]];
    const nearness = [[5, 1, 1], [0], [2, 1]];
    expect(kept(stunPlan(clusters, nearness, 3))).toEqual([[1], [3], [5]]);
    expect(stunPlan(clusters, [], 4)).toEqual(
      averaging([
        [0, 3, 4].map((expert) => ({ expert, weight: 1 / 3 })),
        [{ expert: 1, weight: 1 }],
        [2, 5].map((expert) => ({ expert, weight: 0.5 })),
      ]),
    );
  });

  test('average linkage joins by the mean distance, not the smallest or largest', () => {
    // {0, 1} first; then 2 is 3 from them on average, 3 is 2.9 from 2.
    const table = [
      [0, 1, 2, 9],
      [1, 0, 4, 9],
      [2, 4, 0, 2.9],
      [9, 9, 2.9, 0],
    ];
    const distances = symmetric(4, (i, j) => table[i]![j]!);
    expect(averageLinkage(distances, 4, 3)).toEqual([[0, 1], [2], [3]]);
    expect(averageLinkage(distances, 4, 2)).toEqual([
      [0, 1],
      [2, 3],
    ]);
    expect(averageLinkage(distances, 4, 1)).toEqual([[0, 1, 2, 3]]);
  });
});

describe('merging', () => {
  test('hc-smoe merges like outputs, weighted by tokens', () => {
    const plan = hcSmoe(
      emptySurvey(4, {
        meanOutputs: Float64Array.of(0, 0, 10, 10, 0.5, 0, 10, 11),
        family: withCounts([30, 0, 10, 0]),
      }),
      { keep: 2 },
    );
    expect(plan).toEqual({
      experts: [
        [
          { expert: 0, weight: 0.75 },
          { expert: 2, weight: 0.25 },
        ],
        [
          { expert: 1, weight: 0.5 },
          { expert: 3, weight: 0.5 },
        ],
      ],
      routerRows: [[0], [1], [2], [3]],
      expertOfRow: [0, 1, 0, 1],
      align: false,
    });
  });

  test('m-smoe sends the rare experts to the dominant ones of the most similar logits', () => {
    // Dominant: 3 and 0. Expert 1 is like 3, expert 2 like 0.
    const products = [
      [4, 1, 3, 0],
      [1, 4, 0, 3],
      [3, 0, 4, 1],
      [0, 3, 1, 4],
    ].flat();
    const survey = emptySurvey(4, { family: withCounts([40, 10, 0, 50]), logitProducts: Float64Array.from(products) });
    const [plan] = mSmoe([survey], { keep: 2 }, 'uniform');
    expect(plan).toEqual(
      sharing(
        [
          [
            { expert: 0, weight: 1 },
            { expert: 2, weight: 0 },
          ],
          [
            { expert: 3, weight: 50 / 60 },
            { expert: 1, weight: 10 / 60 },
          ],
        ],
        true,
      ),
    );
    expect(plan!.expertOfRow).toEqual([0, 1, 0, 1]);
  });

  test('m-smoe over all layers makes the most frequent dominant, one in every layer', () => {
    const even = emptySurvey(4, { family: withCounts([50, 50, 50, 50]) });
    const uneven = emptySurvey(4, { family: withCounts([197, 1, 1, 1]) });
    const plans = mSmoe([even, uneven], { keep: 2 }, 'global');
    expect(plans.map(({ experts }) => experts.length)).toEqual([3, 1]);
  });
});
