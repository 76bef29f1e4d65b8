/** The description of a layer after its experts were restructured, under the names that the source has. */
import type { FeedForwardPart, LayerSpec, MlpSpec, WeightSource } from './spec.ts';

/** The routed experts of a part as they are stored. */
export interface RestructuredPart {
  readonly experts: number;
  /** Router row → stored expert. */
  readonly expertOfRow: readonly number[];
}

/**
 * Experts are numbered anew from 0, in tensors of their own or fused, and the router has as many rows as `expertOfRow`; a
 * token goes to no more experts than there are rows. Parts that are undefined stay as they are.
 */
export function restructuredLayer(layer: LayerSpec, parts: readonly (RestructuredPart | undefined)[]): LayerSpec {
  const feedForward = layer.feedForward.map((part, index): FeedForwardPart => {
    const target = parts[index];
    if (part.kind === 'dense' || target === undefined) return part;
    const { experts, expertOfRow } = target;
    const rows = expertOfRow.length;
    const { weight, correctionBias, topK, ...rest } = part.router;
    return {
      kind: 'routed',
      router: {
        ...rest,
        weight: { ...weight, shape: [rows, weight.shape[1]!] },
        ...(correctionBias && { correctionBias: { ...correctionBias, shape: [rows] } }),
        topK: Math.min(topK, rows),
        expertOfRow,
      },
      experts: part.experts.slice(0, experts).map((mlp) => ofFewer(mlp, experts)),
    };
  });
  return { ...layer, feedForward };
}

/** An expert of a fused tensor that holds only so many. */
function ofFewer({ gate, up, down }: MlpSpec, experts: number): MlpSpec {
  const fewer = (source: WeightSource): WeightSource => {
    const { slice } = source;
    return slice === undefined ? source : { ...source, slice: { ...slice, of: [experts, ...slice.of.slice(1)] } };
  };
  return { gate: fewer(gate), up: fewer(up), down: fewer(down) };
}
