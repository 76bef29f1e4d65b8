/** Methods that merge experts and let the router's rows share what is left. */

import type { NativeSurvey } from '../../native.ts';
import { type ExpertAmount, keptOf, keptOfAll, type Scope } from './count.ts';
import { averageLinkage, euclidean } from './linkage.ts';
import { type ExpertPlan, sharing, weighted } from './plan.ts';
import { rank } from './scores.ts';
import { countsOf } from './survey.ts';

/**
 * HC-SMoE (Chen et al. 2024, arXiv 2410.08589): average linkage of the experts' mean outputs over all tokens; a cluster
 * becomes the mean of its members, weighted by how many tokens chose each.
 */
export function hcSmoe(survey: NativeSurvey, amount: ExpertAmount): ExpertPlan {
  const { experts, meanOutputs } = survey;
  const hidden = meanOutputs.length / experts;
  const rows = Array.from({ length: experts }, (_, e) => meanOutputs.subarray(e * hidden, (e + 1) * hidden));
  const counts = countsOf(survey);
  const clusters = averageLinkage(euclidean(rows), experts, keptOf(amount, experts));
  return sharing(
    clusters.map((members) => weighted(members, counts)),
    false,
  );
}

/**
 * M-SMoE (Li et al. 2023, arXiv 2310.01334): the experts chosen most often are dominant, each other one joins the dominant
 * expert whose router logits are most like its own (cosine over all tokens); inner channels are permuted to match those of
 * the dominant expert, then a group becomes the mean of its members, weighted by how many tokens chose each. Scope
 * `global`, the paper's: dominant are the most frequent of all layers, in every layer at least one.
 */
export function mSmoe(surveys: readonly NativeSurvey[], amount: ExpertAmount, scope: Scope): ExpertPlan[] {
  const counts = surveys.map(countsOf);
  const ranked = counts.map(rank);
  let keep = ranked.map(({ length }) => (scope === 'uniform' ? keptOf(amount, length) : 1));
  if (scope === 'global') {
    const total = keptOfAll(
      amount,
      ranked.map(({ length }) => length),
    );
    const rest = ranked.flatMap((order, part) =>
      order.slice(1).map((expert) => ({ part, share: counts[part]![expert]! / Math.max(surveys[part]!.tokens, 1) })),
    );
    rest.sort((a, b) => b.share - a.share);
    for (const { part } of rest.slice(0, total - keep.length)) keep = keep.map((n, i) => (i === part ? n + 1 : n));
  }
  return surveys.map((survey, part) => grouped(survey, ranked[part]!, keep[part]!, counts[part]!));
}

function grouped(
  { experts, logitProducts }: NativeSurvey,
  order: readonly number[],
  keep: number,
  counts: readonly number[],
): ExpertPlan {
  const dominant = order.slice(0, keep);
  const cosine = (i: number, j: number) => {
    const norms = Math.sqrt(logitProducts[i * experts + i]! * logitProducts[j * experts + j]!);
    return norms > 0 ? logitProducts[i * experts + j]! / norms : 0;
  };
  // The dominant expert comes first in its group: the others are aligned to it.
  const groups = dominant.map((expert) => [expert]);
  for (const expert of order.slice(keep).sort((a, b) => a - b)) {
    let best = 0;
    for (const [group, leader] of dominant.entries()) {
      if (cosine(expert, leader) > cosine(expert, dominant[best]!)) best = group;
    }
    groups[best]!.push(expert);
  }
  groups.sort(([a], [b]) => a! - b!);
  return sharing(
    groups.map((members) => weighted(members, counts)),
    true,
  );
}
