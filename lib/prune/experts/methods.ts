/** The expert pruning methods, each a row that says what it needs to know and which experts it leaves. */

import { EspalierError } from '../../errors.ts';
import type { NativeSurvey } from '../../native.ts';
import { type ExpertAmount, keptOf, type Scope } from './count.ts';
import { hcSmoe, mSmoe } from './merging.ts';
import { bestSet, checkSets } from './naee.ts';
import { type ExpertPlan, keeping } from './plan.ts';
import { keepHighest, randomScores } from './scores.ts';
import { dissimilarity, stunClusters, stunPlan } from './stun.ts';
import { type Criterion, type RoutedPart, scoresBy } from './survey.ts';

/** What decides, beside the method itself. */
export interface ExpertChoice {
  readonly method: ExpertMethodName;
  readonly amount: ExpertAmount;
  readonly scope: Scope;
  /** Of the method `family`. */
  readonly criterion: Criterion;
  /** STUN's weights of router rows and coactivation, and below how many clusters it takes means. */
  readonly lambda1: number;
  readonly lambda2: number;
  readonly kappa: number;
}

/** What a method needs of a layer's survey; undefined: nothing. */
export interface SurveyNeeds {
  readonly logitProducts?: boolean;
  readonly meanOutputs?: boolean;
  /** The losses of the kept sets. */
  readonly losses?: boolean;
}

/** What methods may ask while they decide. */
export interface Asking {
  readonly seed: number;
  /** For each cluster of a part's experts the squared distances of its members' weights from their mean. */
  distances(part: RoutedPart, clusters: readonly (readonly number[])[]): Promise<readonly (readonly number[])[]>;
}

export interface ExpertMethod {
  needs(choice: ExpertChoice): SurveyNeeds | undefined;
  readonly readsRouter?: true;
  /** How it makes one expert of several, where it may with so many left of a layer. */
  merges?(choice: ExpertChoice, left: number): 'channel by channel' | 'aligned' | undefined;
  readonly scopes: readonly Scope[];
  /** One plan for each part. */
  decide(parts: readonly RoutedPart[], choice: ExpertChoice, asking: Asking): Promise<ExpertPlan[]> | ExpertPlan[];
  readonly summary: string;
  readonly source: string;
}

const both: readonly Scope[] = ['uniform', 'global'];

const surveyOf = ({ layer, survey }: RoutedPart): NativeSurvey => {
  if (survey !== undefined) return survey;
  throw new EspalierError('INTERNAL', `layer ${layer} was not surveyed`);
};

/** A method that drops the lowest S(b, alpha, beta). */
function byCriterion(criterion: Criterion, summary: string, source: string): ExpertMethod {
  return {
    needs: () => ({}),
    scopes: both,
    decide: (parts, { amount, scope }) =>
      keepHighest(
        parts.map((part) => scoresBy(criterion, surveyOf(part))),
        amount,
        scope,
      ),
    summary,
    source,
  };
}

export const expertMethods = {
  random: {
    needs: () => undefined,
    scopes: both,
    decide: (parts, { amount, scope }, { seed }) =>
      keepHighest(
        parts.map(({ layer, part, experts }) => randomScores(seed, layer, part, experts)),
        amount,
        scope,
      ),
    summary: 'any, by the seed',
    source: 'the baseline',
  },
  frequency: byCriterion(
    { b: 0, alpha: 0, beta: 0 },
    'tokens that chose the expert',
    'Muzio et al. 2024, arXiv 2404.05089',
  ),
  'soft-frequency': {
    needs: () => ({}),
    scopes: both,
    decide: (parts, { amount, scope }) =>
      keepHighest(
        parts.map((part) => [...surveyOf(part).probabilities]),
        amount,
        scope,
      ),
    summary: 'Σ of the router’s probabilities over all tokens',
    source: 'Muzio et al. 2024, arXiv 2404.05089',
  },
  ean: byCriterion({ b: 0, alpha: 0, beta: 1 }, 'Σ ‖output‖', 'Lasby et al. 2025, arXiv 2510.13999'),
  reap: byCriterion({ b: 1, alpha: 1, beta: 1 }, 'mean of gate · ‖output‖', 'Lasby et al. 2025, arXiv 2510.13999'),
  man: byCriterion({ b: 1, alpha: 0, beta: 1 }, 'mean of ‖output‖', 'arXiv 2606.15716'),
  msan: byCriterion({ b: 1, alpha: 0, beta: 2 }, 'mean of ‖output‖²', 'arXiv 2606.15716'),
  family: {
    needs: () => ({}),
    scopes: both,
    decide: (parts, { criterion, amount, scope }) =>
      keepHighest(
        parts.map((part) => scoresBy(criterion, surveyOf(part))),
        amount,
        scope,
      ),
    summary: 'Σ gate^alpha · ‖output‖^beta / tokens^b',
    source: 'arXiv 2606.15716',
  },
  naee: {
    needs: () => ({ losses: true }),
    scopes: ['uniform'],
    decide: (parts, { amount }) =>
      parts.map((part) => {
        const keep = keptOf(amount, part.experts);
        checkSets(part.experts, keep, part.layer);
        if (keep === part.experts) return keeping(Array.from({ length: keep }, (_, expert) => expert));
        return keeping(bestSet(surveyOf(part).losses, part.experts, keep));
      }),
    summary: 'the set whose output differs least from that of all, every set tried',
    source: 'Lu et al. 2024, arXiv 2402.14800',
  },
  stun: {
    needs: ({ lambda2 }) => (lambda2 === 0 ? undefined : {}),
    readsRouter: true,
    merges: ({ kappa, scope }, left) => (left < kappa || scope === 'global' ? 'channel by channel' : undefined),
    scopes: both,
    async decide(parts, { amount, scope, lambda1, lambda2, kappa }, { distances }) {
      const clusters = stunClusters(
        parts.map((part) => dissimilarity(part, lambda1, lambda2)),
        parts.map(({ experts }) => experts),
        amount,
        scope,
      );
      const plans: ExpertPlan[] = [];
      for (const [i, part] of parts.entries()) {
        const own = clusters[i]!;
        plans.push(stunPlan(own, own.length < kappa ? [] : await distances(part, own), kappa));
      }
      return plans;
    },
    summary: 'of experts with similar router rows the one nearest to their mean',
    source: 'Lee et al. 2024, arXiv 2409.06211',
  },
  'hc-smoe': {
    needs: () => ({ meanOutputs: true }),
    merges: () => 'channel by channel',
    scopes: ['uniform'],
    decide: (parts, { amount }) => parts.map((part) => hcSmoe(surveyOf(part), amount)),
    summary: 'merges experts with similar mean outputs',
    source: 'Chen et al. 2024, arXiv 2410.08589',
  },
  'm-smoe': {
    needs: () => ({ logitProducts: true }),
    merges: () => 'aligned',
    scopes: both,
    decide: (parts, { amount, scope }) => mSmoe(parts.map(surveyOf), amount, scope),
    summary: 'merges the rarely chosen experts into the frequent ones with the most similar router logits',
    source: 'Li et al. 2023, arXiv 2310.01334',
  },
} as const satisfies Record<string, ExpertMethod>;

export type ExpertMethodName = keyof typeof expertMethods;
export const expertMethodNames = Object.keys(expertMethods) as ExpertMethodName[];
