/** What a pruning run says about what it did. */
import type { NativeMatrixReport } from '../native.ts';

export interface SparsityCount {
  /** Weights that are zero, and all weights, of the matrices in question. */
  readonly zeros: number;
  readonly size: number;
  /** zeros / size. */
  readonly sparsity: number;
}

export interface ExpertReport extends SparsityCount {
  readonly part: number;
  readonly expert: number;
  /** Calibration tokens that the router sent to it. */
  readonly tokens: number;
  /** It saw no usable inputs and was pruned by magnitude. */
  readonly fallback: boolean;
  /** Roles of matrices left as they are because they hold NaN or infinity. */
  readonly skipped: readonly string[];
}

export interface LayerReport extends SparsityCount {
  readonly layer: number;
  readonly experts: readonly ExpertReport[];
}

export function countSparsity(parts: readonly { readonly zeros: number; readonly size: number }[]): SparsityCount {
  const zeros = parts.reduce((sum, part) => sum + part.zeros, 0);
  const size = parts.reduce((sum, part) => sum + part.size, 0);
  return { zeros, size, sparsity: size === 0 ? 0 : zeros / size };
}

export function layerReport(layer: number, matrices: readonly NativeMatrixReport[]): LayerReport {
  const byExpert = new Map<string, NativeMatrixReport[]>();
  for (const matrix of matrices) {
    const key = `${matrix.part}.${matrix.expert}`;
    byExpert.set(key, [...(byExpert.get(key) ?? []), matrix]);
  }
  const experts = [...byExpert.values()].map(
    (own): ExpertReport => ({
      part: own[0]!.part,
      expert: own[0]!.expert,
      tokens: own[0]!.tokens,
      fallback: own.some(({ fallback }) => fallback),
      skipped: own.filter(({ skipped }) => skipped).map(({ role }) => role),
      ...countSparsity(own),
    }),
  );
  return { layer, ...countSparsity(matrices), experts };
}

/** Sentences about what a reader of the result should know. */
export function layerWarnings({ layer, experts }: LayerReport): string[] {
  return experts.flatMap(({ expert, tokens, fallback, skipped }) => [
    ...(fallback ? [`layer ${layer}, expert ${expert} ${whyFallback(tokens)}`] : []),
    ...skipped.map((role) => `layer ${layer}, expert ${expert}, ${role} holds NaN or infinity and was left as it is`),
  ]);
}

function whyFallback(tokens: number): string {
  return tokens === 0
    ? 'saw no calibration tokens and was pruned by magnitude; use more calibration text'
    : 'saw only inputs that are zero, NaN or infinite, and was pruned by magnitude';
}
