import { z } from 'zod';
import { EspalierError } from '../errors.ts';
import { maxTopLogprobs } from './logprobs.ts';

/** How the next token is chosen, and when generation ends. */
export interface SamplingOptions {
  /**
   * 0 takes the most likely token; above 0 the logits are divided by it before sampling.
   * Range [0, 100]. @default 0, or 1 if `topK`, `topP` or `minP` is given
   */
  temperature?: number | undefined;
  /** Sample among the k most likely tokens; 0 means all. Integer in [0, 2^31 − 1]. @default 0 */
  topK?: number | undefined;
  /** Sample among the most likely tokens whose probabilities reach p together. Range (0, 1]. @default 1 */
  topP?: number | undefined;
  /** Sample among tokens at least p times as likely as the most likely one. Range [0, 1). @default 0 */
  minP?: number | undefined;
  /**
   * Logits of tokens already in the prompt or the answer are divided by it if positive, multiplied if negative
   * (Keskar et al., CTRL, 2019). Range (0, 100]. @default 1
   */
  repetitionPenalty?: number | undefined;
  /**
   * Subtracted from the logits of tokens that stand in the answer (OpenAI's formula; the prompt does not count).
   * Range [−2, 2]. @default 0
   */
  presencePenalty?: number | undefined;
  /** Subtracted from a token's logit as often as it stands in the answer. Range [−2, 2]. @default 0 */
  frequencyPenalty?: number | undefined;
  /**
   * Added to the logits of tokens, by id; −100 in effect forbids one, 100 in effect demands it. At most 1024 entries, each in
   * [−100, 100]. Penalties come first. @default {}
   */
  logitBias?: Readonly<Record<number, number>> | undefined;
  /**
   * Give each token's log-probability, and so many of the most likely tokens in its place with theirs. They are those of the
   * model's own distribution, before penalties, bias, temperature and filters. Integer in [0, 20]. @default none are given
   */
  topLogprobs?: number | undefined;
  /** The same seed gives the same tokens. Integer in [0, 2^64 − 1]; above 2^53 as a bigint. @default 0 */
  seed?: number | bigint | undefined;
  /** The text ends before the first of these; at most 64, each of 1 to 1024 characters. @default [] */
  stop?: string | readonly string[] | undefined;
  /** Most tokens to generate. Integer in [1, 2^31 − 1]. @default 256 */
  maxTokens?: number | undefined;
}

/** Every option with its value. */
export interface ResolvedSampling {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly logitBias: ReadonlyMap<number, number>;
  /** Undefined: no log-probabilities. */
  readonly topLogprobs: number | undefined;
  readonly seed: bigint;
  readonly stop: readonly string[];
  readonly maxTokens: number;
}

const maxInt32 = 2 ** 31 - 1;
const maxStops = 64;
const maxStopLength = 1024;
const maxBiases = 1024;

const integer = (low: number) => z.int().min(low).max(maxInt32).optional();
const penalty = z.number().min(-2).max(2).optional();
const stopString = z
  .string()
  .min(1)
  .max(maxStopLength)
  .refine((text) => !/\p{Surrogate}/u.test(text));
const seed = z.union([
  z.int().min(0),
  z
    .bigint()
    .min(0n)
    .max(2n ** 64n - 1n),
]);

const schema = z.strictObject({
  temperature: z.number().min(0).max(100).optional(),
  topK: integer(0),
  topP: z.number().gt(0).max(1).optional(),
  minP: z.number().min(0).lt(1).optional(),
  repetitionPenalty: z.number().gt(0).max(100).optional(),
  presencePenalty: penalty,
  frequencyPenalty: penalty,
  logitBias: z
    .record(z.string().regex(/^\d{1,9}$/), z.number().min(-100).max(100))
    .refine((biases) => Object.keys(biases).length <= maxBiases)
    .optional(),
  topLogprobs: z.int().min(0).max(maxTopLogprobs).optional(),
  seed: seed.optional(),
  stop: z.union([stopString, z.array(stopString).max(maxStops).readonly()]).optional(),
  maxTokens: integer(1),
});

const allowed: Record<keyof SamplingOptions, string> = {
  temperature: 'a number from 0 (greedy) to 100',
  topK: `an integer from 0 (all tokens) to ${maxInt32}`,
  topP: 'a number above 0 and at most 1',
  minP: 'a number from 0 to below 1',
  repetitionPenalty: 'a number above 0 and at most 100',
  presencePenalty: 'a number from -2 to 2',
  frequencyPenalty: 'a number from -2 to 2',
  logitBias: `an object of at most ${maxBiases} token ids with a number from -100 to 100 each`,
  topLogprobs: `an integer from 0 to ${maxTopLogprobs}`,
  seed: 'an integer from 0 to 2^64 - 1, as a bigint above 2^53',
  stop: `a text of 1 to ${maxStopLength} characters, or a list of at most ${maxStops}`,
  maxTokens: `an integer from 1 to ${maxInt32}`,
};

/**
 * Checks the options of generation and fills in the defaults.
 * @param label What the caller's user knows an option by; the command line passes its flags (`--top-k`).
 * @throws EspalierError `USAGE` with the option as `field`, naming the value found and what is allowed.
 */
export function resolveSampling(
  options: SamplingOptions,
  label: (option: keyof SamplingOptions) => string = (option) => option,
): ResolvedSampling {
  const result = schema.safeParse(options);
  if (!result.success) throw usageError(options, result.error, label);
  const { temperature, topK, topP, minP, repetitionPenalty, seed, stop, maxTokens } = result.data;
  const { presencePenalty, frequencyPenalty, logitBias, topLogprobs } = result.data;
  const samples = topK !== undefined || topP !== undefined || minP !== undefined;
  return {
    temperature: temperature ?? (samples ? 1 : 0),
    topK: topK ?? 0,
    topP: topP ?? 1,
    minP: minP ?? 0,
    repetitionPenalty: repetitionPenalty ?? 1,
    presencePenalty: presencePenalty ?? 0,
    frequencyPenalty: frequencyPenalty ?? 0,
    logitBias: new Map(Object.entries(logitBias ?? {}).map(([id, bias]) => [Number(id), bias])),
    topLogprobs,
    seed: BigInt(seed ?? 0),
    stop: typeof stop === 'string' ? [stop] : (stop ?? []),
    maxTokens: maxTokens ?? 256,
  };
}

function usageError(
  options: SamplingOptions,
  error: z.ZodError,
  label: (option: keyof SamplingOptions) => string,
): EspalierError {
  const issue = error.issues[0];
  if (issue?.code === 'unrecognized_keys') {
    const field = issue.keys[0] ?? '';
    const known = Object.keys(allowed) as (keyof SamplingOptions)[];
    return new EspalierError('USAGE', `there is no option ${field}; allowed are ${known.map(label).join(', ')}`, {
      field,
    });
  }
  const field = issue?.path[0];
  if (typeof field !== 'string' || !(field in allowed)) {
    return new EspalierError('USAGE', 'the sampling options must be an object');
  }
  const option = field as keyof SamplingOptions;
  const message = `${label(option)} must be ${allowed[option]}; found ${shown(options[option])}`;
  return new EspalierError('USAGE', message, { field });
}

function shown(value: unknown): string {
  if (typeof value === 'bigint' || typeof value === 'number') return String(value);
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}
