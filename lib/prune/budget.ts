/** How much is pruned. */
import { EspalierError } from '../errors.ts';
import type { ModelSpec } from '../models/spec.ts';
import { expertMatrices } from '../models/targets.ts';

/** An unstructured fraction, or n kept of every m consecutive inputs. */
export type Budget = { readonly sparsity: number } | { readonly keep: number; readonly group: number };

/** Reads `N:M`. @throws USAGE naming the field. */
export function parsePattern(text: string): Budget {
  const match = /^(\d{1,3}):(\d{1,3})$/.exec(text);
  const [keep, group] = match === null ? [0, 0] : [Number(match[1]), Number(match[2])];
  if (keep < 1 || keep >= group) {
    throw new EspalierError(
      'USAGE',
      `pattern must be N:M with 1 ≤ N < M, for example 2:4; found ${JSON.stringify(text)}`,
      {
        field: 'pattern',
      },
    );
  }
  return { keep, group };
}

/** @throws USAGE unless 0 < sparsity < 1. */
export function checkSparsity(sparsity: number): Budget {
  if (!(sparsity > 0 && sparsity < 1)) {
    throw new EspalierError(
      'USAGE',
      `sparsity must lie between 0 and 1 (exclusive), for example 0.5; found ${sparsity}`,
      {
        field: 'sparsity',
      },
    );
  }
  return { sparsity };
}

/** @throws USAGE where a pattern's groups do not divide the inputs of every expert matrix. */
export function checkFits(budget: Budget, spec: ModelSpec): void {
  if ('sparsity' in budget) return;
  for (const { source } of expertMatrices(spec)) {
    const inputs = source.shape.at(-1)!;
    if (inputs % budget.group === 0) continue;
    throw new EspalierError(
      'USAGE',
      `pattern ${budget.keep}:${budget.group} does not fit ${source.tensor} with ${inputs} inputs: ${budget.group} must divide them`,
      { field: 'pattern', tensor: source.tensor },
    );
  }
}

export function describeBudget(budget: Budget): string {
  return 'sparsity' in budget ? `${+(budget.sparsity * 100).toFixed(2)} %` : `${budget.keep}:${budget.group}`;
}

/** The native form: n:m where `group` is not 0. */
export function nativeBudget(budget: Budget): { sparsity: number; keep: number; group: number } {
  return 'sparsity' in budget
    ? { sparsity: budget.sparsity, keep: 0, group: 0 }
    : { sparsity: 0, keep: budget.keep, group: budget.group };
}
