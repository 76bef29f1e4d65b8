/** What the weights are held as while the model runs. */
import { EspalierError } from '../errors.ts';

/**
 * `source`: bf16 as it is, f16 and f32 as float32. `bf16`: rounded to nearest even. `int8`, `int4`: whole numbers with one
 * scale for each row and 64 inputs, rounded to nearest (int4: with the scale of least squared error).
 */
export const precisions = ['source', 'bf16', 'int8', 'int4'] as const;
export type Precision = (typeof precisions)[number];

/** One precision for all matrices, or one for the routed experts and one for the rest. Routers and norms stay as they are. */
export type Weights = Precision | { readonly experts?: Precision | undefined; readonly rest?: Precision | undefined };

export interface ResolvedWeights {
  readonly experts: Precision;
  readonly rest: Precision;
}

/** @throws USAGE for anything else */
export function resolveWeights(weights: Weights = 'source'): ResolvedWeights {
  const { experts = 'source', rest = 'source' } =
    typeof weights === 'object' ? weights : { experts: weights, rest: weights };
  for (const found of [experts, rest]) {
    if (precisions.includes(found)) continue;
    throw weightsError(JSON.stringify(found));
  }
  return { experts, rest };
}

/** Reads `int8`, or `experts=int4,rest=int8`. @throws USAGE */
export function parseWeights(text: string): Weights {
  if ((precisions as readonly string[]).includes(text)) return text as Precision;
  const parts = text.split(',').map((part) => /^(experts|rest)=(.*)$/.exec(part));
  if (parts.includes(null)) throw weightsError(JSON.stringify(text));
  // What is not said is not filled in: a packed copy of a pruning run has its own idea of the experts.
  const said = Object.fromEntries(parts.map((match) => [match![1]!, match![2]!])) as Weights;
  resolveWeights(said);
  return said;
}

function weightsError(found: string): EspalierError {
  return new EspalierError(
    'USAGE',
    `weights must be one of ${precisions.join(', ')}, or parts such as experts=int4,rest=int8; found ${found}`,
    { field: 'weights' },
  );
}
