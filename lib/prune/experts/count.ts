/** How many experts a layer keeps. */
import { EspalierError } from '../../errors.ts';

/** `ratio`: the fraction of experts that goes, floor(ratio · experts) of them; `keep`: how many of a layer stay. */
export type ExpertAmount = { readonly ratio: number } | { readonly keep: number };

/** `uniform`: the amount holds for every layer. `global`: for all of them together, and layers may differ. */
export type Scope = 'uniform' | 'global';

/** Experts that stay of `experts` in each layer, or with scope `global` on average. @throws USAGE naming the field */
export function keptOf(amount: ExpertAmount, experts: number): number {
  if ('keep' in amount) {
    if (amount.keep <= experts) return amount.keep;
    throw new EspalierError('USAGE', `keep is ${amount.keep}, but there are layers of only ${experts} experts`, {
      field: 'keep',
    });
  }
  return experts - removed(amount.ratio, experts);
}

/** Experts that stay of all layers together. @throws USAGE naming the field */
export function keptOfAll(amount: ExpertAmount, counts: readonly number[]): number {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if ('keep' in amount) return counts.reduce((sum, count) => sum + keptOf(amount, count), 0);
  const kept = all - removed(amount.ratio, all);
  if (kept >= counts.length) return kept;
  throw new EspalierError(
    'USAGE',
    `ratio ${amount.ratio} leaves ${kept} of ${all} experts, fewer than the ${counts.length} layers that need one each`,
    { field: 'ratio' },
  );
}

/** @throws USAGE unless 0 ≤ ratio < 1, or keep is at least 1 */
export function checkAmount(ratio: number | undefined, keep: number | undefined): ExpertAmount {
  if (ratio !== undefined && keep !== undefined) {
    throw new EspalierError('USAGE', 'ratio and keep exclude each other; give one of them', { field: 'keep' });
  }
  if (keep !== undefined) {
    if (Number.isInteger(keep) && keep >= 1) return { keep };
    throw new EspalierError('USAGE', `keep must be a whole number of experts, at least 1; found ${keep}`, {
      field: 'keep',
    });
  }
  const fraction = ratio ?? 0.25;
  if (fraction >= 0 && fraction < 1) return { ratio: fraction };
  throw new EspalierError(
    'USAGE',
    `ratio is the fraction of experts to remove, at least 0 and below 1, for example 0.25; found ${fraction}`,
    { field: 'ratio' },
  );
}

/** floor(ratio · count), of the ratio as it was written: 0.29 · 100 is 29. */
function removed(ratio: number, count: number): number {
  return Math.floor(ratio * count * (1 + Number.EPSILON));
}
