/** A recipe: everything that decides what a pruning run does to the weights. */
import { z } from 'zod';
import { EspalierError } from '../errors.ts';
import { type ExpertsOptions, expertsOptions } from './stages/experts.ts';
import { kindNamed, kindOf, rankOf, type Stage, type StageOptions, stageNames } from './stages/index.ts';
import { type QuantizeOptions, quantizeOptions } from './stages/quantize.ts';
import { type RecoverOptions, recoverOptions } from './stages/recover.ts';
import { type WeightsOptions, weightsOptions } from './stages/weights.ts';

export interface RecipeOptions extends WeightsOptions {
  /**
   * What is done to each layer, in this order. Instead of it, the options of single stages can be given here at the top:
   * `method`, `sparsity`, `pattern`, `routerWeighting` make a `weights` stage, those that begin with `experts` an `experts`
   * stage before it, `recoverEpochs` and `quantizeValues` the stages after it. Without options of the first two there is a
   * `weights` stage with its defaults. @default that stage alone
   */
  stages?: readonly StageOptions[] | undefined;
  /** `method` of an `experts` stage. */
  expertsMethod?: ExpertsOptions['method'];
  /** `ratio` of an `experts` stage. */
  expertsRatio?: ExpertsOptions['ratio'];
  /** `keep` of an `experts` stage. */
  expertsKeep?: ExpertsOptions['keep'];
  /** `scope` of an `experts` stage. */
  expertsScope?: ExpertsOptions['scope'];
  /** `epochs` of a `recover` stage. */
  recoverEpochs?: RecoverOptions['epochs'];
  /** `values` of a `quantize` stage. */
  quantizeValues?: QuantizeOptions['values'];
  /** Calibration sequences. @default 128 */
  samples?: number | undefined;
  /** Tokens of a calibration sequence; no more than the model's context. @default 2048 */
  sequenceLength?: number | undefined;
  /** Of the choice of calibration text. @default 0 */
  seed?: number | undefined;
  /** How the result is stored. @default 'dense' */
  save?: 'dense' | 'sparse' | undefined;
  /** Leave matrices that hold NaN or infinity as they are, instead of refusing the model. @default false */
  allowNonfinite?: boolean | undefined;
}

export interface Recipe {
  readonly stages: readonly Stage[];
  readonly samples: number;
  readonly sequenceLength: number;
  readonly seed: number;
  readonly save: 'dense' | 'sparse';
  readonly allowNonfinite: boolean;
}

/** Which options at the top make which stage, and what the stage calls them. */
const shorthand: Record<string, Record<string, string>> = {
  experts: { expertsMethod: 'method', expertsRatio: 'ratio', expertsKeep: 'keep', expertsScope: 'scope' },
  weights: { method: 'method', sparsity: 'sparsity', pattern: 'pattern', routerWeighting: 'routerWeighting' },
  recover: { recoverEpochs: 'epochs' },
  quantize: { quantizeValues: 'values' },
};

const schema = z.strictObject({
  ...weightsOptions,
  expertsMethod: expertsOptions.method,
  expertsRatio: expertsOptions.ratio,
  expertsKeep: expertsOptions.keep,
  expertsScope: expertsOptions.scope,
  recoverEpochs: recoverOptions.epochs,
  quantizeValues: quantizeOptions.values,
  stages: z.array(z.record(z.string(), z.unknown())).min(1).optional(),
  samples: z.int().min(1).max(1_000_000).optional(),
  sequenceLength: z.int().min(2).max(1_048_576).optional(),
  seed: z.int().min(0).optional(),
  save: z.enum(['dense', 'sparse']).optional(),
  allowNonfinite: z.boolean().optional(),
});

/** Fills in the defaults. @throws USAGE; its `field` is the way to the option, with dots: `stages.1.weights.pattern` */
export function resolveRecipe(options: RecipeOptions): Recipe {
  const given = parse(schema, options, []);
  const { samples = 128, sequenceLength = 2048, seed = 0, save = 'dense', allowNonfinite = false } = given;
  const stages =
    given.stages === undefined ? shortStages(given) : longStages(given as typeof given & { stages: object[] });
  return { stages, samples, sequenceLength, seed, save, allowNonfinite };
}

/** Names of the options at the top that stand for stages. */
export const shorthandNames: readonly string[] = Object.values(shorthand).flatMap((names) => Object.keys(names));

function shortStages(given: Record<string, unknown>): Stage[] {
  const stages: Stage[] = [];
  for (const [name, names] of Object.entries(shorthand)) {
    const options = Object.entries(names).filter(([short]) => given[short] !== undefined);
    if (options.length === 0) continue;
    const own = Object.fromEntries(options.map(([short, long]) => [long, given[short]]));
    try {
      stages.push(resolveStage(name, own, []));
    } catch (error) {
      if (!(error instanceof EspalierError) || error.field === undefined) throw error;
      throw fail([shortOf(names, error.field)], error.message);
    }
  }
  const prunes = stages.some(({ stage }) => stage === 'experts' || stage === 'weights');
  return prunes ? stages : [resolveStage('weights', {}, []), ...stages];
}

/** What an option of a stage is called at the top. */
function shortOf(names: Record<string, string>, field: string): string {
  return Object.keys(names).find((short) => names[short] === field) ?? field;
}

function longStages(given: Record<string, unknown> & { stages: object[] }): Stage[] {
  const double = shorthandNames.find((name) => given[name] !== undefined);
  if (double !== undefined) {
    throw fail([double], `${double} belongs to a stage; where the recipe has stages, say it there`);
  }
  const stages = given.stages.map((entry, i) => {
    const [name, ...more] = Object.keys(entry);
    if (name === undefined || more.length > 0 || kindNamed(name) === undefined) {
      const found = Object.keys(entry).join(', ') || 'nothing';
      const allowed = `one of ${stageNames.join(', ')} with its options`;
      throw fail(['stages', i], `a stage is ${allowed}; found ${found}`);
    }
    return resolveStage(name, (entry as Record<string, unknown>)[name] ?? {}, ['stages', i, name]);
  });
  for (const [i, stage] of stages.entries()) {
    const before = stages[i - 1];
    if (before === undefined || rankOf(before) < rankOf(stage)) {
      within(['stages', i], () => kindOf(stage).follow?.(stages.slice(0, i)));
      continue;
    }
    throw fail(
      ['stages', i],
      `${stage.stage} cannot follow ${before.stage}: a recipe has each stage once, in the order ${stageNames.join(', ')}`,
    );
  }
  return stages;
}

function resolveStage(name: string, options: unknown, path: Path): Stage {
  const kind = kindNamed(name)!;
  const given = parse(kind.schema, options, path);
  return within(path, () => kind.resolve(given) as Stage);
}

/** What a kind says of one of its options, with the way to it. */
function within<T>(path: Path, call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (!(error instanceof EspalierError) || error.field === undefined) throw error;
    throw fail([...path, error.field], error.message);
  }
}

type Path = readonly (string | number)[];

function fail(path: Path, message: string): EspalierError {
  return new EspalierError('USAGE', message, { field: path.join('.') });
}

function parse<T>(type: z.ZodType<T>, value: unknown, path: Path): T {
  const parsed = type.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const unknown = issue.code === 'unrecognized_keys' ? issue.keys : [];
  const field = [...path, ...(issue.path as Path), ...unknown.slice(0, 1)];
  const shape = type instanceof z.ZodObject ? Object.keys(type.shape) : [];
  const allowed = unknown.length > 0 ? `; known fields: ${shape.join(', ')}` : '';
  throw fail(field, `${field.join('.') || 'the recipe'}: ${issue.message}${allowed}`);
}

/** For people. */
export function describeRecipe({ stages }: Recipe): string {
  return stages.map((stage) => kindOf(stage).describe(stage)).join('; ');
}
