/**
 * What the engine knows of a model: plain data, made by one family file from config.json and the tensor names, with no
 * model names left in it. Shapes are [output features, input features] as checkpoints store them.
 */

/** A tensor of the checkpoint, or one expert's rows of a fused `[experts, rows, columns]` tensor. */
export interface WeightSource {
  readonly tensor: string;
  /** Shape that this weight must have, after slicing: `[rows, columns]` for matrices, `[n]` for vectors. */
  readonly shape: readonly number[];
  /** Present for a slice of a fused expert tensor: its full shape, which expert, and its first row there. */
  readonly slice?: { readonly of: readonly number[]; readonly expert: number; readonly row: number };
}

/** Rotary position embedding: angles are position · inverseFrequencies[i]; cosines and sines are multiplied by `scale`. */
export interface RopeSpec {
  /** head_dim / 2 values, all scalings (linear, yarn, llama3) applied. */
  readonly inverseFrequencies: Float32Array;
  readonly scale: number;
}

/** Grouped-query attention with rotary embedding (rotate-half pairing: element i with i + head_dim / 2). */
export interface AttentionSpec {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Factor on q·k, usually 1 / sqrt(headDim). */
  readonly scale: number;
  /** A query sees keys at distances 0 … window − 1; 0 means all. */
  readonly window: number;
  /** Clamp q, k and v to ± this; 0 means no clamp (OLMoE's `clip_qkv`). */
  readonly clip: number;
  readonly q: WeightSource;
  readonly k: WeightSource;
  readonly v: WeightSource;
  readonly o: WeightSource;
  readonly qBias?: WeightSource;
  readonly kBias?: WeightSource;
  readonly vBias?: WeightSource;
  readonly oBias?: WeightSource;
  /** RMSNorm on q and k before the rotation: of each head (`[headDim]`) or the whole projection (`[heads · headDim]`). */
  readonly qNorm?: WeightSource;
  readonly kNorm?: WeightSource;
}

/** down(silu(gate x) ⊙ (up x)). */
export interface MlpSpec {
  readonly gate: WeightSource;
  readonly up: WeightSource;
  readonly down: WeightSource;
}

/**
 * How router logits become a choice and gates: scored, the top k chosen (ties to the lower index), divided by their sum if
 * `renormalise`. Fields that are optional have the names and defaults of transformers' configurations.
 */
export interface RouterSpec {
  /** `[router rows, hidden]`. */
  readonly weight: WeightSource;
  readonly topK: number;
  /** Divide the chosen scores by their sum (`norm_topk_prob`). */
  readonly renormalise: boolean;
  /** Of one token's logits together, or of each by itself (DeepSeek-V3, GLM-4.5). @default 'softmax' */
  readonly scoringFunc?: 'softmax' | 'sigmoid' | undefined;
  /** Groups of equal size that the router rows lie in, one after the other. @default 1 */
  readonly nGroup?: number | undefined;
  /** Only experts of so many groups are chosen, of those with the largest sums of their two best scores. @default 1 */
  readonly topkGroup?: number | undefined;
  /** Multiplies the gates, last. @default 1 */
  readonly routedScalingFactor?: number | undefined;
  /** `e_score_correction_bias`, `[router rows]`: added to the scores for the choice, not in the gates. */
  readonly correctionBias?: WeightSource;
  /**
   * `[topK − 1]`: from the first of a token's second, third, … experts on whose gate is below so much of the first's, they
   * are not run, and the gates of the others are scaled to the same sum.
   */
  readonly skipBelow?: readonly number[];
  /** Router row → index into `experts`. */
  readonly expertOfRow: readonly number[];
}

/** A feed-forward is the sum of its parts. */
export type FeedForwardPart =
  | {
      readonly kind: 'dense';
      readonly mlp: MlpSpec /** Output scaled by sigmoid(gate · x); `[1, hidden]`. */;
      readonly gate?: WeightSource;
    }
  | { readonly kind: 'routed'; readonly router: RouterSpec; readonly experts: readonly MlpSpec[] };

/** x += attention(norm(x)); x += Σ parts(norm(x)). */
export interface LayerSpec {
  readonly attentionNorm: WeightSource;
  readonly attention: AttentionSpec;
  readonly feedForwardNorm: WeightSource;
  readonly feedForward: readonly FeedForwardPart[];
}

export interface ModelSpec {
  /** `model_type` of config.json; for people, the engine does not read it. */
  readonly family: string;
  readonly hiddenSize: number;
  readonly vocabularySize: number;
  readonly maxPositions: number;
  readonly normEpsilon: number;
  readonly rope: RopeSpec;
  readonly embedding: WeightSource;
  readonly finalNorm: WeightSource;
  /** The same source as `embedding` where they are tied. */
  readonly head: WeightSource;
  readonly layers: readonly LayerSpec[];
  readonly bosTokenId: number | undefined;
  /** Generation stops at any of these. */
  readonly eosTokenIds: readonly number[];
}
