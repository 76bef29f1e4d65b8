/** What a pruning run says about what it did. */
import type { NativeMatrixMoments, NativeMoments } from '../native.ts';
import type { ExpertOutcome, StageOutcome } from './stages/stage.ts';

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
  /** The experts of the source that it was made of, where there was a choice among them. */
  readonly from?: readonly number[];
  /** Calibration tokens that the router sent to it. */
  readonly tokens: number;
  /** It saw no usable inputs and was pruned by magnitude. */
  readonly fallback: boolean;
  /** What recovery did: see ExpertOutcome; undefined where the recipe has none. */
  readonly recovery?: ExpertOutcome['recovery'];
  /** A Gram matrix of it is of fewer tokens than it has columns, and so is not of full rank by itself. */
  readonly starved: boolean;
  /** Roles of matrices left as they are because they hold NaN or infinity. */
  readonly skipped: readonly string[];
}

/** Fourth standardised moment of the expert weights, the mean over the matrices weighted by their size. */
export interface Kurtosis {
  /** Of all weights. */
  readonly all: number;
  /** Of those that are not zero. */
  readonly kept: number;
}

export interface LayerReport extends SparsityCount {
  readonly layer: number;
  /** For each part of the feed-forward the gates below which experts may be skipped; see ModelOptions.skipExperts. */
  readonly gateRatios?: readonly (readonly number[])[];
  readonly experts: readonly ExpertReport[];
  /** Before the first stage, and after each. */
  readonly kurtosis: readonly (Kurtosis & { readonly after: string | null })[];
}

export function countSparsity(parts: readonly { readonly zeros: number; readonly size: number }[]): SparsityCount {
  const zeros = parts.reduce((sum, part) => sum + part.zeros, 0);
  const size = parts.reduce((sum, part) => sum + part.size, 0);
  return { zeros, size, sparsity: size === 0 ? 0 : zeros / size };
}

export function kurtosisOf(matrices: readonly NativeMoments[]): Kurtosis {
  const size = matrices.reduce((sum, matrix) => sum + matrix.size, 0);
  const mean = (field: 'kurtosis' | 'kurtosisKept') =>
    size === 0 ? 0 : matrices.reduce((sum, matrix) => sum + matrix[field] * matrix.size, 0) / size;
  return { all: mean('kurtosis'), kept: mean('kurtosisKept') };
}

/** `matrices`: the expert matrices as they are now. */
export function layerReport(
  layer: number,
  matrices: readonly NativeMatrixMoments[],
  outcomes: readonly StageOutcome[],
  kurtosis: LayerReport['kurtosis'],
): LayerReport {
  const byExpert = new Map<string, NativeMatrixMoments[]>();
  for (const matrix of matrices) {
    const key = `${matrix.part}.${matrix.expert}`;
    byExpert.set(key, [...(byExpert.get(key) ?? []), matrix]);
  }
  const said = outcomes.flatMap(({ experts }) => experts);
  const experts = [...byExpert.values()].map((own): ExpertReport => {
    const { part, expert } = own[0]!;
    const notes = said.filter((note) => note.part === part && note.expert === expert);
    const from = notes.find((note) => note.from !== undefined)?.from;
    const recovered = notes.find(({ recovery }) => recovery !== undefined);
    return {
      part,
      expert,
      ...(from && { from }),
      ...(recovered === undefined ? {} : { recovery: recovered.recovery }),
      tokens: Math.max(0, ...notes.map(({ tokens = 0 }) => tokens)),
      fallback: notes.some(({ fallback }) => fallback),
      starved: notes.some(({ starved }) => starved),
      skipped: [...new Set(notes.flatMap(({ skipped = [] }) => skipped))],
      ...countSparsity(own),
    };
  });
  const gateRatios = outcomes.find((outcome) => outcome.gateRatios !== undefined)?.gateRatios;
  return { layer, ...countSparsity(matrices), ...(gateRatios && { gateRatios }), experts, kurtosis };
}

/** Sentences about what a reader of the result should know. */
export function runWarnings(layers: readonly LayerReport[]): string[] {
  const each = layers.flatMap(({ layer, experts }) =>
    experts.flatMap(({ expert, tokens, fallback, recovery, skipped }) => [
      ...(fallback ? [`layer ${layer}, expert ${expert} ${whyFallback(tokens)}`] : []),
      ...(recovery === null
        ? [`layer ${layer}, expert ${expert} saw ${tokens} calibration tokens, too few to train it; use more text`]
        : []),
      ...skipped.map((role) => `layer ${layer}, expert ${expert}, ${role} holds NaN or infinity and was left as it is`),
    ]),
  );
  const all = layers.flatMap(({ experts }) => experts);
  const starved = all.filter((expert) => expert.starved);
  if (starved.length === 0) return each;
  const least = Math.min(...starved.map(({ tokens }) => tokens));
  const message =
    `${starved.length} of ${all.length} experts saw fewer calibration tokens than their matrices have inputs ` +
    `(the least ${least}); what they lack was taken from the other experts of their layers; use more calibration text`;
  return [...each, message];
}

function whyFallback(tokens: number): string {
  return tokens === 0
    ? 'saw no calibration tokens and was pruned by magnitude; use more calibration text'
    : 'saw only inputs that are zero, NaN or infinite, and was pruned by magnitude';
}
