/** The stage that removes or merges experts. */
import { z } from 'zod';
import type { Checkpoint } from '../../checkpoint/checkpoint.ts';
import { EspalierError } from '../../errors.ts';
import type { LayerExperts } from '../../models/experts-config.ts';
import { stateExperts } from '../../models/experts-config.ts';
import { type RestructuredPart, restructuredLayer } from '../../models/restructure.ts';
import type { FeedForwardPart, LayerSpec, ModelSpec, WeightSource } from '../../models/spec.ts';
import { type NativeSurvey, native, runJob } from '../../native.ts';
import { nativeMlp } from '../../runtime/native-spec.ts';
import { checkAmount, type ExpertAmount, keptOf, keptOfAll, type Scope } from '../experts/count.ts';
import {
  type ExpertChoice,
  type ExpertMethod,
  type ExpertMethodName,
  expertMethodNames,
  expertMethods,
} from '../experts/methods.ts';
import { checkSets } from '../experts/naee.ts';
import { averaging, type ExpertPlan, sharesExperts } from '../experts/plan.ts';
import type { RoutedPart } from '../experts/survey.ts';
import { mergingBytes, surveyBytes } from './memory.ts';
import type { ExpertOutcome, LayerContext, PrepareContext, StageKind, StageOutcome } from './stage.ts';

/** How a model whose router rows share merged experts is stored. */
export type SaveMerges = 'map' | 'repeat' | 'average';

export interface ExpertsOptions {
  /** How experts are chosen; see `expertMethods`. @default 'reap' */
  method?: ExpertMethodName | undefined;
  /** Fraction of the experts to remove, floor(ratio · experts) of them. @default 0.25 */
  ratio?: number | undefined;
  /** Experts of a layer that stay (with scope `global`: on average). Excludes `ratio`. */
  keep?: number | undefined;
  /**
   * Whether every layer keeps as many experts, or layers may differ, which only Espalier loads. naee and hc-smoe know only
   * `uniform`. @default 'uniform'
   */
  scope?: Scope | undefined;
  /** Powers of `family`: Σ gate^alpha · ‖output‖^beta / tokens^b. @default 1 */
  b?: 0 | 1 | undefined;
  /** @default 1 */
  alpha?: 0 | 1 | 2 | undefined;
  /** @default 1 */
  beta?: 0 | 1 | 2 | undefined;
  /** stun: weight of the distance of router rows. @default 1 */
  lambda1?: number | undefined;
  /** stun: weight of the coactivation; 0 needs no calibration. @default 0 */
  lambda2?: number | undefined;
  /** stun: layers left with fewer clusters take means instead of representatives. @default 3 */
  kappa?: number | undefined;
  /**
   * hc-smoe and m-smoe: `map` stores each merged expert once and in config.json which router row leads to it, which only
   * Espalier loads; `repeat` stores it once for every row, at the source's size; `average` gives each merged expert one
   * router row, the mean of its members'. @default 'map'
   */
  saveMerges?: SaveMerges | undefined;
  /**
   * Measure how much the second, third, … expert of a token weighs against its first, and store the medians in
   * espalier.json, so that the model can run with `skipExperts`. @default false
   */
  skipExperts?: boolean | undefined;
}

export interface ExpertsStage extends ExpertChoice {
  readonly stage: 'experts';
  readonly saveMerges: SaveMerges;
  readonly skipExperts: boolean;
}

const power = z.union([z.literal(0), z.literal(1), z.literal(2)]);

export const expertsOptions = {
  method: z.enum(expertMethodNames as [ExpertMethodName, ...ExpertMethodName[]]).optional(),
  ratio: z.number().optional(),
  keep: z.number().optional(),
  scope: z.enum(['uniform', 'global']).optional(),
  b: z.union([z.literal(0), z.literal(1)]).optional(),
  alpha: power.optional(),
  beta: power.optional(),
  lambda1: z.number().min(0).optional(),
  lambda2: z.number().min(0).optional(),
  kappa: z.int().min(1).optional(),
  saveMerges: z.enum(['map', 'repeat', 'average']).optional(),
  skipExperts: z.boolean().optional(),
};

/** Options that only some methods know. */
const owners: Partial<Record<keyof ExpertsOptions, readonly ExpertMethodName[]>> = {
  b: ['family'],
  alpha: ['family'],
  beta: ['family'],
  lambda1: ['stun'],
  lambda2: ['stun'],
  kappa: ['stun'],
  saveMerges: ['hc-smoe', 'm-smoe'],
};

const methodOf = ({ method }: ExpertChoice): ExpertMethod => expertMethods[method];

/** What each part of each layer becomes; null for dense ones. */
export interface ExpertsDecision {
  readonly layers: readonly (readonly (ExpertPlan | null)[])[];
}

export const expertsStage: StageKind<ExpertsOptions, ExpertsStage> = {
  name: 'experts',
  schema: z.strictObject(expertsOptions),
  resolve(given) {
    const method = given.method ?? 'reap';
    for (const [option, methods] of Object.entries(owners)) {
      if (given[option as keyof ExpertsOptions] === undefined || methods.includes(method)) continue;
      throw usage(option, `${option} belongs to ${methods.join(' and ')}; the method is ${method}`);
    }
    const scope = given.scope ?? 'uniform';
    const { scopes }: ExpertMethod = expertMethods[method];
    if (!scopes.includes(scope))
      throw usage('scope', `${method} knows only scope ${scopes.join(', ')}; found ${scope}`);
    return {
      stage: 'experts',
      method,
      amount: checkAmount(given.ratio, given.keep),
      scope,
      criterion: { b: given.b ?? 1, alpha: given.alpha ?? 1, beta: given.beta ?? 1 },
      lambda1: given.lambda1 ?? 1,
      lambda2: given.lambda2 ?? 0,
      kappa: given.kappa ?? 3,
      saveMerges: given.saveMerges ?? 'map',
      skipExperts: given.skipExperts ?? false,
    };
  },
  needsCalibration: (stage) => methodOf(stage).needs(stage) !== undefined || stage.skipExperts,
  readsLayers: ({ skipExperts }) => skipExperts,
  dependsOnSeed: ({ method }) => method === 'random',
  dependsOnIsa: (stage) => methodOf(stage).needs(stage) !== undefined || stage.skipExperts,
  check(stage, spec) {
    const parts = routedParts(spec);
    if (parts.length === 0) throw usage('method', 'the model has no routed experts');
    for (const { layer, experts, router } of parts) {
      if (router.expertOfRow.some((expert, row) => expert !== row)) {
        throw usage('method', `experts of layer ${layer} were merged before: router rows share them`);
      }
      if ((router.nGroup ?? 1) > 1) {
        throw usage('method', `the router of layer ${layer} chooses among groups of experts, which must stay complete`);
      }
      if (stage.scope === 'uniform' || 'keep' in stage.amount) keptOf(stage.amount, experts);
      if (stage.method === 'naee') checkSets(experts, keptOf(stage.amount, experts), layer);
    }
    if (stage.scope === 'global') {
      keptOfAll(
        stage.amount,
        parts.map(({ experts }) => experts),
      );
    }
  },
  zeros: () => 0,
  keeps: ({ amount, saveMerges }, experts) => (saveMerges === 'repeat' ? experts : keptOf(amount, experts)),
  memory(stage, shape) {
    const method = methodOf(stage);
    const left = keptOf(stage.amount, shape.experts);
    const merges = method.merges?.(stage, left);
    const surveyed = surveyBytes(method.needs(stage) ?? {}, shape);
    const merged = merges === undefined ? 0 : mergingBytes(merges === 'aligned', left, shape);
    return { each: 0, rest: Math.max(surveyed, merged) };
  },
  steps: ({ skipExperts }) => [
    { name: 'experts', weight: 10 },
    ...(skipExperts ? [{ name: 'gate ratios', weight: 25 }] : []),
  ],
  async prepare(stage, context): Promise<ExpertsDecision> {
    const parts = await surveyed(stage, context);
    const decided = await methodOf(stage).decide(parts, stage, {
      seed: context.seed,
      distances: (part, clusters) => distances(context, part, clusters),
    });
    const plans = stage.saveMerges === 'average' ? decided.map(({ experts }) => averaging(experts)) : decided;
    const layers = context.spec.layers.map(({ feedForward }): (ExpertPlan | null)[] => feedForward.map(() => null));
    for (const [i, { layer, part }] of parts.entries()) layers[layer]![part] = plans[i]!;
    const decision = { layers };
    const { warnings } = stateExperts(context.checkpoint.config, leftExperts(stage, decision));
    for (const warning of warnings) context.warn(warning);
    return decision;
  },
  async run(stage, context): Promise<StageOutcome> {
    const plans = (context.prepared as ExpertsDecision).layers[context.layer]!;
    const source = context.spec.layers[context.layer]!;
    const replaced = new Map<string, Uint8Array>();
    const experts: ExpertOutcome[] = [];
    for (const [part, plan] of plans.entries()) {
      if (plan === null) continue;
      for (const [name, bytes] of await restructure(context, source, part, plan)) replaced.set(name, bytes);
      for (const [expert, members] of plan.experts.entries()) {
        experts.push({ part, expert, from: members.map((member) => member.expert) });
      }
    }
    context.progress(0, 1, 1);
    const stored = plans.map((plan) => (plan === null ? undefined : storedPart(stage, plan)));
    const gateRatios = stage.skipExperts ? ratiosOf(await context.survey({}, 1)) : undefined;
    return {
      experts,
      ...(gateRatios && { gateRatios }),
      restructured: {
        layer: restructuredLayer(source, stored),
        tensors: replaced,
        expertOf: (part, expert) => (stage.saveMerges === 'repeat' ? plans[part]!.expertOfRow[expert]! : expert),
      },
    };
  },
  leaves: (stage, prepared) => leftExperts(stage, prepared as ExpertsDecision),
  describe: ({ method, amount, scope }) =>
    `${method}, ${describeAmount(amount)}${scope === 'global' ? ' over all layers' : ''}`,
};

function describeAmount(amount: ExpertAmount): string {
  return 'keep' in amount
    ? `${amount.keep} experts kept`
    : `${+(amount.ratio * 100).toFixed(2)} % of the experts removed`;
}

function usage(field: string, message: string): EspalierError {
  return new EspalierError('USAGE', message, { field });
}

type RoutedSpec = Extract<FeedForwardPart, { kind: 'routed' }>;

function routedParts(spec: ModelSpec) {
  return spec.layers.flatMap(({ feedForward }, layer) =>
    feedForward.flatMap((part, index) =>
      part.kind === 'routed' ? [{ layer, part: index, experts: part.experts.length, router: part.router }] : [],
    ),
  );
}

/** The routed parts with what the method needs to know of them. */
async function surveyed(stage: ExpertsStage, context: PrepareContext): Promise<RoutedPart[]> {
  const { checkpoint, spec, signal } = context;
  const method = methodOf(stage);
  const needs = method.needs(stage);
  const surveys: NativeSurvey[][] = [];
  if (needs !== undefined) {
    await context.walk(async ({ layer, pruner, input, output, lengths }) => {
      const routed = spec.layers[layer]!.feedForward.find((part) => part.kind === 'routed');
      const experts = routed?.experts.length ?? 0;
      const keep = needs.losses && experts > 0 ? keptOf(stage.amount, experts) : 0;
      const { logitProducts = false, meanOutputs = false } = needs;
      // With all of them kept there is nothing to try.
      const request = {
        input,
        lengths,
        ...(output && { output }),
        logitProducts,
        meanOutputs,
        keep: keep === experts ? 0 : keep,
      };
      surveys[layer] = await runJob(() => native().prunerSurvey(pruner, request), signal);
    });
  }
  return routedParts(spec).map(({ layer, part, experts, router }) => ({
    layer,
    part,
    experts,
    routerRows: method.readsRouter ? rowsOf(checkpoint, router.weight) : [],
    survey: surveys[layer]?.[part],
  }));
}

function rowsOf(checkpoint: Checkpoint, source: WeightSource): Float64Array[] {
  const [rows, cols] = source.shape as [number, number];
  const all = Array.from({ length: rows }, (_, row) => [row]);
  const { values } = averageRows(checkpoint, source, cols, all);
  return all.map(([row]) => Float64Array.from(values.subarray(row! * cols, (row! + 1) * cols)));
}

function averageRows(
  checkpoint: Checkpoint,
  { tensor }: WeightSource,
  cols: number,
  rows: readonly (readonly number[])[],
) {
  return native().averageRows(checkpoint.read(tensor), checkpoint.get(tensor).dtype, cols, rows);
}

async function distances(
  { checkpoint, spec, threads, signal }: PrepareContext,
  { layer, part }: RoutedPart,
  clusters: readonly (readonly number[])[],
): Promise<number[][]> {
  const { experts } = spec.layers[layer]!.feedForward[part] as RoutedSpec;
  const weights = experts.map((mlp) => nativeMlp(checkpoint, mlp));
  return await runJob(() => native().expertDistances(weights, [...checkpoint.files], clusters, threads), signal, {
    file: checkpoint.dir,
  });
}

/** Changes the layer in memory; returns the tensors of its router as they will be stored. */
async function restructure(
  { checkpoint, pruner, signal }: LayerContext,
  layer: LayerSpec,
  part: number,
  { experts, routerRows, expertOfRow, align }: ExpertPlan,
): Promise<Map<string, Uint8Array>> {
  const { weight, correctionBias, topK } = (layer.feedForward[part] as RoutedSpec).router;
  const router = averageRows(checkpoint, weight, weight.shape[1]!, routerRows);
  const bias = correctionBias && averageRows(checkpoint, correctionBias, 1, routerRows);
  const plan = {
    experts,
    expertOfRow,
    align,
    topK: Math.min(topK, expertOfRow.length),
    router: router.bytes,
    ...(bias && { correctionBias: bias.values }),
  };
  await runJob(() => native().prunerRestructure(pruner, part, plan), signal, { file: checkpoint.dir });
  return new Map([
    [weight.tensor, router.bytes] as const,
    ...(correctionBias && bias ? [[correctionBias.tensor, bias.bytes] as const] : []),
  ]);
}

/** The experts as they are stored, which `repeat` does once for every router row. */
function storedPart({ saveMerges }: ExpertsStage, { experts, expertOfRow }: ExpertPlan): RestructuredPart {
  if (saveMerges !== 'repeat') return { experts: experts.length, expertOfRow };
  return { experts: expertOfRow.length, expertOfRow: expertOfRow.map((_, row) => row) };
}

function leftExperts(stage: ExpertsStage, { layers }: ExpertsDecision): LayerExperts[] {
  return layers.map((parts) => {
    const plan = parts.find((found) => found !== null);
    if (plan === undefined || plan === null) return undefined;
    const { experts, expertOfRow } = storedPart(stage, plan);
    const isShared = sharesExperts(plan) && stage.saveMerges !== 'repeat';
    return isShared ? { experts, expertOfRow } : { experts };
  });
}

function ratiosOf(surveys: readonly NativeSurvey[]): number[][] {
  return surveys.map(({ gateRatios }) => [...gateRatios]);
}
