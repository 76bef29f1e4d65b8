/**
 * STUN's expert pruning (Lee et al. 2024, arXiv 2409.06211): experts whose router rows are alike, and which the same tokens
 * choose, do alike things; of each cluster of them one stays.
 */
import { type ExpertAmount, keptOf, keptOfAll, type Scope } from './count.ts';
import { clustersOf, euclidean, type Merge, strictMerges } from './linkage.ts';
import { averaging, type ExpertPlan, keeping, weighted } from './plan.ts';
import type { RoutedPart } from './survey.ts';

/**
 * −b_ij = lambda1 · ‖R_i − R_j‖ − lambda2 · a_ij over the router's rows R and the coactivation a, which is divided by its mean
 * over the pairs so that it has no unit.
 */
export function dissimilarity(
  { experts, routerRows, survey }: RoutedPart,
  lambda1: number,
  lambda2: number,
): Float64Array {
  const distances = euclidean(routerRows);
  const coactivation = survey?.coactivation;
  if (lambda2 === 0 || coactivation === undefined) return distances.map((distance) => lambda1 * distance);
  const pairs = experts * (experts - 1);
  const mean = coactivation.reduce((sum, count) => sum + count, 0) / Math.max(pairs, 1) || 1;
  return distances.map((distance, i) => lambda1 * distance - (lambda2 * coactivation[i]!) / mean);
}

/**
 * The clusters of each part. Scope `global`: one threshold for all parts, searched so that as many clusters are left as the
 * amount says; where the smallest threshold that suffices gives fewer, its last unions are not made.
 */
export function stunClusters(
  distances: readonly Float64Array[],
  counts: readonly number[],
  amount: ExpertAmount,
  scope: Scope,
): number[][][] {
  const merged = (threshold: number, fewest: (part: number) => number) =>
    distances.map((own, part) => strictMerges(own, counts[part]!, threshold, fewest(part)));
  if (scope === 'uniform') {
    return distances.map((own, part) => {
      const n = counts[part]!;
      const keep = keptOf(amount, n);
      const threshold = search([own], (at) => n - strictMerges(own, n, at, keep).length <= keep);
      return clustersOf(n, strictMerges(own, n, threshold, keep));
    });
  }
  const target = keptOfAll(amount, counts);
  const all = counts.reduce((sum, count) => sum + count, 0);
  const unions = (merges: readonly Merge[][]) => merges.reduce((sum, own) => sum + own.length, 0);
  const one = () => 1;
  const threshold = search(distances, (at) => all - unions(merged(at, one)) <= target);
  const merges = merged(threshold, one);
  const order = merges.flatMap((own, part) => own.map(({ distance }, at) => ({ distance, part, at })));
  order.sort((x, y) => x.distance - y.distance || x.part - y.part || x.at - y.at);
  const made = counts.map(() => 0);
  for (const { part } of order.slice(0, all - target)) made[part] = made[part]! + 1;
  return merges.map((own, part) => clustersOf(counts[part]!, own.slice(0, made[part])));
}

/** The smallest threshold above one of the distances that is enough, as far as bisection finds it; else above all. */
function search(distances: readonly Float64Array[], isEnough: (threshold: number) => boolean): number {
  const sorted = [...new Set(distances.flatMap((own) => [...own]))].sort((a, b) => a - b);
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isEnough(sorted[middle]!)) high = middle;
    else low = middle + 1;
  }
  return sorted[low] ?? Number.POSITIVE_INFINITY;
}

/**
 * Of each cluster the member nearest to the mean of their weights with its router row; in a part of fewer than `kappa`
 * clusters the means of weights and router rows instead.
 *
 * @param nearness Of each cluster the squared distances of its members from their mean.
 */
export function stunPlan(
  clusters: readonly (readonly number[])[],
  nearness: readonly (readonly number[])[],
  kappa: number,
): ExpertPlan {
  if (clusters.length < kappa) return averaging(clusters.map((members) => weighted(members, [])));
  return keeping(
    clusters.map((members, cluster) => {
      const distances = nearness[cluster]!;
      return members[distances.indexOf(Math.min(...distances))]!;
    }),
  );
}
