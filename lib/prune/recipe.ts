/** A recipe: everything that decides what a pruning run does to the weights. */
import { z } from 'zod';
import { readJsonFile } from '../checkpoint/json-file.ts';
import { EspalierError } from '../errors.ts';
import { type Budget, checkSparsity, parsePattern } from './budget.ts';
import { type MethodName, methodNames, methods } from './methods.ts';

const schema = z.strictObject({
  method: z.enum(methodNames as [MethodName, ...MethodName[]]),
  sparsity: z.number(),
  pattern: z.string(),
  routerWeighting: z.boolean(),
  samples: z.int().min(1).max(1_000_000),
  sequenceLength: z.int().min(2).max(1_048_576),
  seed: z.int().min(0),
  save: z.enum(['dense', 'sparse']),
  allowNonfinite: z.boolean(),
});

export interface RecipeOptions {
  /** How weights are scored and updated; see `methods`. @default 'moe-pruner' */
  method?: MethodName | undefined;
  /**
   * Fraction of the weights to zero, between 0 and 1: floor(sparsity · columns) of every row in the row-wise methods, one
   * threshold for the matrix (magnitude) or for each 128 columns (SparseGPT). @default 0.5
   */
  sparsity?: number | undefined;
  /** `N:M`: keep N of each M consecutive inputs. Excludes `sparsity`. */
  pattern?: string | undefined;
  /** Weight each token's input by its gate in the statistics. @default true for moe-pruner, false for the others */
  routerWeighting?: boolean | undefined;
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
  readonly method: MethodName;
  readonly budget: Budget;
  readonly routerWeighting: boolean;
  readonly samples: number;
  readonly sequenceLength: number;
  readonly seed: number;
  readonly save: 'dense' | 'sparse';
  readonly allowNonfinite: boolean;
}

/** Reads a recipe file: JSON with the fields of RecipeOptions. @throws RECIPE naming file and field */
export function readRecipe(path: string): RecipeOptions {
  const { value } = readJsonFile(path, 'RECIPE', 2 ** 20);
  return check(value, (problem, field) => new EspalierError('RECIPE', `${path}: ${problem}`, { file: path, field }));
}

/** Fills in the defaults. @throws USAGE naming the option */
export function resolveRecipe(options: RecipeOptions): Recipe {
  const given = check(options, (problem, field) => new EspalierError('USAGE', problem, { field }));
  if (given.sparsity !== undefined && given.pattern !== undefined) {
    throw new EspalierError('USAGE', 'sparsity and pattern exclude each other; give one of them', { field: 'pattern' });
  }
  const method = given.method ?? 'moe-pruner';
  const row: (typeof methods)[MethodName] & { routerWeightingFixed?: string } = methods[method];
  const routerWeighting = given.routerWeighting ?? row.routerWeighting;
  if (routerWeighting !== row.routerWeighting && row.routerWeightingFixed !== undefined) {
    throw new EspalierError('USAGE', `routerWeighting cannot be ${routerWeighting}: ${row.routerWeightingFixed}`, {
      field: 'routerWeighting',
    });
  }
  return {
    method,
    budget: given.pattern === undefined ? checkSparsity(given.sparsity ?? 0.5) : parsePattern(given.pattern),
    routerWeighting,
    samples: given.samples ?? 128,
    sequenceLength: given.sequenceLength ?? 2048,
    seed: given.seed ?? 0,
    save: given.save ?? 'dense',
    allowNonfinite: given.allowNonfinite ?? false,
  };
}

function check(value: unknown, fail: (problem: string, field: string) => EspalierError): RecipeOptions {
  const parsed = schema.partial().safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const field = issue.code === 'unrecognized_keys' ? issue.keys.join(', ') : issue.path.join('.');
  const allowed = issue.code === 'unrecognized_keys' ? `; known fields: ${Object.keys(schema.shape).join(', ')}` : '';
  throw fail(`${field || 'the recipe'}: ${issue.message}${allowed}`, field);
}
