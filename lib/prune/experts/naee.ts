/** NAEE (Lu et al. 2024, arXiv 2402.14800, section 3.2): the kept set that changes the layer's output least. */
import { EspalierError } from '../../errors.ts';

/** Sets that are tried; native/prune/naee.h has the same number. */
export const mostSets = 50_000;

/** C(n, r). */
export function countSets(n: number, r: number): number {
  let count = 1;
  for (let i = 1; i <= Math.min(r, n - r); i++) count = (count * (n - Math.min(r, n - r) + i)) / i;
  return Math.round(count);
}

/** @throws USAGE where there are too many sets to try */
export function checkSets(experts: number, keep: number, layer: number): void {
  const sets = countSets(experts, keep);
  if (sets <= mostSets) return;
  throw new EspalierError(
    'USAGE',
    `naee tries every set of ${keep} of the ${experts} experts of layer ${layer}: ${sets.toLocaleString('en')} sets, ` +
      `where at most ${mostSets.toLocaleString('en')} are tried; take another method, such as reap, or remove fewer experts`,
    { field: 'method' },
  );
}

/** The set of the lowest loss; of equal ones the first. `losses` are in lexicographic order of the sets. */
export function bestSet(losses: ArrayLike<number>, experts: number, keep: number): number[] {
  let best = 0;
  for (let i = 1; i < losses.length; i++) if (losses[i]! < losses[best]!) best = i;
  // The sets that begin with `first` are as many as there are ways to go on.
  const set: number[] = [];
  let left = best;
  for (let first = 0; set.length < keep; first++) {
    const ways = countSets(experts - first - 1, keep - set.length - 1);
    if (left < ways) set.push(first);
    else left -= ways;
  }
  return set;
}
