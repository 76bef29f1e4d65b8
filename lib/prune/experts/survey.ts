/** What decisions about experts are made from: the routed parts of a model and what a dense run over them showed. */
import type { NativeSurvey } from '../../native.ts';

export interface PartId {
  readonly layer: number;
  /** Index into the layer's `feedForward`. */
  readonly part: number;
}

/** A routed part of the model. */
export interface RoutedPart extends PartId {
  readonly experts: number;
  /** Rows of the router's matrix, `[experts, hidden]`; empty unless the method asks for them. */
  readonly routerRows: readonly Float64Array[];
  /** Undefined where the method looks at no data. */
  readonly survey: NativeSurvey | undefined;
}

/** S = Σ gate^alpha · ‖output‖^beta over an expert's tokens, divided by their number to the power b (arXiv 2606.15716). */
export interface Criterion {
  readonly b: 0 | 1;
  readonly alpha: 0 | 1 | 2;
  readonly beta: 0 | 1 | 2;
}

/** S of each expert; 0 for one without tokens. */
export function scoresBy({ b, alpha, beta }: Criterion, { experts, family }: NativeSurvey): number[] {
  return Array.from({ length: experts }, (_, expert) => {
    const count = family[expert * 9]!;
    const sum = family[expert * 9 + alpha * 3 + beta]!;
    return b === 0 || count === 0 ? sum : sum / count;
  });
}

/** Tokens that chose each expert. */
export function countsOf(survey: NativeSurvey): number[] {
  return scoresBy({ b: 0, alpha: 0, beta: 0 }, survey);
}
