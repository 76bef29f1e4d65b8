/** The kinds of stages that a recipe can have, in the order in which they may stand in it. */

import { type ExpertsOptions, type ExpertsStage, expertsStage } from './experts.ts';
import { type QuantizeOptions, type QuantizeStage, quantizeStage } from './quantize.ts';
import { type RecoverOptions, type RecoverStage, recoverStage } from './recover.ts';
import type { StageBase, StageKind } from './stage.ts';
import { type WeightsOptions, type WeightsStage, weightsStage } from './weights.ts';

/** A stage with its defaults filled in. */
export type Stage = ExpertsStage | WeightsStage | RecoverStage | QuantizeStage;

/** What a recipe says of a stage: one key, the stage's name, with its options. */
export type StageOptions =
  | { readonly experts: ExpertsOptions }
  | { readonly weights: WeightsOptions }
  | { readonly recover: RecoverOptions }
  | { readonly quantize: QuantizeOptions };

/** What of a kind the rest of the pipeline sees: it hands a stage only to the kind that resolved it. */
export type AnyStageKind = StageKind<unknown, StageBase>;

const kinds = [
  expertsStage,
  weightsStage,
  recoverStage,
  quantizeStage,
] as readonly unknown[] as readonly AnyStageKind[];

export const stageNames: readonly string[] = kinds.map(({ name }) => name);

/** Undefined for a name that no stage has. */
export function kindNamed(name: string): AnyStageKind | undefined {
  return kinds.find((kind) => kind.name === name);
}

export function kindOf({ stage }: StageBase): AnyStageKind {
  const kind = kindNamed(stage);
  if (kind === undefined) throw new Error(`unreachable: no stage is called ${stage}`);
  return kind;
}

/** Position in the order of stages. */
export function rankOf({ stage }: StageBase): number {
  return stageNames.indexOf(stage);
}
