/** What requests may say, as OpenAI's API defines it, with the sampling options that vLLM and llama-server add. */
import { z } from 'zod';
import { promptText, tokenIds } from './prompt-schema.ts';

const maxInt32 = 2 ** 31 - 1;
const maxStops = 16;
const maxStopLength = 1000;

/** Most answers to one request. */
export const maxChoices = 8;

/** Not done yet: refused by name, unless the value asks for nothing. */
const off = (...nothing: readonly unknown[]) =>
  z
    .unknown()
    .refine(
      (value) => value === undefined || value === null || nothing.includes(value),
      'is not supported by this server',
    )
    .optional();

/** OpenAI's documents give these no meaning for the answer. */
const ignored = z.unknown().optional();

const stop = z
  .union([z.string().min(1).max(maxStopLength), z.array(z.string().min(1).max(maxStopLength)).max(maxStops)])
  .nullish();

const common = {
  model: z.string(),
  max_tokens: z.int().min(1).max(maxInt32).nullish().describe('Most tokens of an answer'),
  temperature: z.number().min(0).max(100).nullish().describe('0: the most likely token. Default 1'),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z.int().min(0).max(maxInt32).nullish().describe('0: all tokens'),
  min_p: z.number().min(0).lt(1).nullish(),
  repetition_penalty: z.number().gt(0).max(100).nullish(),
  ignore_eos: z.boolean().nullish().describe('Go on past ends of text'),
  n: z.int().min(1).max(maxChoices).nullish().describe('Answers to give'),
  seed: z.int().min(0).nullish().describe('The same seed and prompt give the same answer'),
  stop: stop.describe('An answer ends before any of these'),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ include_usage: z.boolean().nullish(), include_obfuscation: ignored }).nullish(),
  presence_penalty: off(0),
  frequency_penalty: off(0),
  logit_bias: off(),
  user: ignored,
};

export const completionRequest = z.strictObject({
  ...common,
  prompt: promptText,
  logprobs: off(),
  echo: off(false),
  best_of: off(1),
  suffix: off(),
});

const part = z.strictObject({ type: z.literal('text'), text: z.string() });
const content = z.union([z.string(), z.array(part).min(1)]);

const message = z.union([
  z.strictObject({ role: z.enum(['system', 'developer', 'user']), content, name: z.string().optional() }),
  z.strictObject({ role: z.literal('assistant'), content, name: z.string().optional(), refusal: ignored }),
]);

export const chatRequest = z.strictObject({
  ...common,
  messages: z.array(message).min(1),
  max_completion_tokens: z.int().min(1).max(maxInt32).nullish().describe('Most tokens of an answer'),
  response_format: z.strictObject({ type: z.literal('text') }).nullish(),
  logprobs: off(false),
  top_logprobs: off(0),
  tools: off(),
  tool_choice: off('none', 'auto'),
  parallel_tool_calls: ignored,
  store: ignored,
  metadata: ignored,
  service_tier: ignored,
  prompt_cache_key: ignored,
  safety_identifier: ignored,
});

export const tokenizeRequest = z.strictObject({
  model: z.string().optional(),
  prompt: z.string(),
  add_special_tokens: z.boolean().optional(),
});

export const detokenizeRequest = z.strictObject({
  model: z.string().optional(),
  tokens: tokenIds,
});

export type CompletionRequest = z.infer<typeof completionRequest>;
export type ChatRequest = z.infer<typeof chatRequest>;
export type CommonRequest = Pick<CompletionRequest, keyof typeof common & keyof CompletionRequest>;
