/** Log-probabilities of tokens, as results give them. */

/** A token and its natural log-probability. */
export interface RankedToken {
  readonly id: number;
  readonly logprob: number;
}

/**
 * How likely a token was, and what else was: by the model's own distribution, which is the softmax of its logits before
 * penalties, bias, constraint, temperature and filters.
 */
export interface TokenLogprob extends RankedToken {
  /** The most likely tokens, the likeliest first, as many as were asked for. */
  readonly top: readonly RankedToken[];
}

/** Most tokens of `TokenLogprob.top`. */
export const maxTopLogprobs = 20;
