/** Methods that give each expert a score and drop the lowest. */
import { createHash } from 'node:crypto';
import { type ExpertAmount, keptOf, keptOfAll, type Scope } from './count.ts';
import { type ExpertPlan, keeping } from './plan.ts';

/**
 * Keeps the experts of the highest scores; of equal ones the lower index stays. With scope `global` the scores of a layer are
 * divided by their mean, so that layers of different scales compare, and every layer keeps its best expert.
 *
 * @param scores Of each part the score of each expert.
 */
export function keepHighest(scores: readonly (readonly number[])[], amount: ExpertAmount, scope: Scope): ExpertPlan[] {
  const ranked = scores.map(rank);
  if (scope === 'uniform') return ranked.map((order) => keeping(order.slice(0, keptOf(amount, order.length))));
  const kept = ranked.map(([best]) => [best!]);
  const rest = ranked.flatMap((order, part) => {
    const own = scores[part]!;
    const mean = own.reduce((sum, score) => sum + score, 0) / own.length || 1;
    return order.slice(1).map((expert) => ({ part, expert, score: own[expert]! / mean }));
  });
  // Stable, and listed by part and rank: ties stay in that order.
  rest.sort((a, b) => b.score - a.score);
  const total = keptOfAll(
    amount,
    scores.map(({ length }) => length),
  );
  for (const { part, expert } of rest.slice(0, total - kept.length)) kept[part]!.push(expert);
  return kept.map(keeping);
}

/** Indices from the highest score to the lowest. */
export function rank(scores: readonly number[]): number[] {
  return scores.map((_, i) => i).sort((a, b) => scores[b]! - scores[a]! || a - b);
}

/** A number for each expert that follows from the seed alone. */
export function randomScores(seed: number, layer: number, part: number, experts: number): number[] {
  return Array.from({ length: experts }, (_, expert) =>
    createHash('sha256').update(`espalier experts:${seed}:${layer}:${part}:${expert}`).digest().readUIntBE(0, 6),
  );
}
