/** What requests may say, as OpenAI's API defines it, with the sampling options that vLLM and llama-server add. */
import { z } from 'zod';
import { maxTopLogprobs } from '../runtime/logprobs.ts';
import { promptText, tokenIds } from './prompt-schema.ts';

const maxInt32 = 2 ** 31 - 1;
const maxStops = 16;
const maxStopLength = 1000;

const maxTools = 128;

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

const maxTokens = (least: number) => z.int().min(least).max(maxInt32).nullish().describe('Most tokens of an answer');

const topLogprobs = z.int().min(0).max(maxTopLogprobs).nullish();

const responseFormat = z.union([
  z.strictObject({ type: z.literal('text') }),
  z.strictObject({ type: z.literal('json_object') }),
  z.strictObject({
    type: z.literal('json_schema'),
    json_schema: z.strictObject({
      name: z.string().max(64),
      description: z.string().optional(),
      schema: z.record(z.string(), z.unknown()),
      strict: z.boolean().nullish().describe('Allow nothing that the schema does not mention'),
    }),
  }),
]);

const common = {
  model: z.string(),
  max_tokens: maxTokens(1),
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
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z
    .record(z.string().regex(/^\d{1,9}$/), z.number().min(-100).max(100))
    .nullish()
    .describe('Added to the logits of token ids'),
  response_format: responseFormat.nullish(),
  structured_outputs: z
    .union([z.strictObject({ regex: z.string().min(1) }), z.strictObject({ grammar: z.string().min(1) })])
    .nullish()
    .describe("The whole text of the answer matches a regular expression, or is of a grammar in EBNF (vLLM's field)"),
  user: ignored,
};

export const completionRequest = z.strictObject({
  ...common,
  prompt: promptText,
  max_tokens: maxTokens(0).describe('Most tokens of an answer; 0 with echo. Default 16'),
  logprobs: topLogprobs.describe('Log-probabilities of the tokens, and of so many of the most likely ones'),
  echo: z.boolean().nullish().describe("Begin with the prompt's text"),
  best_of: off(1),
  suffix: off(),
});

const part = z.strictObject({ type: z.literal('text'), text: z.string() });
const content = z.union([z.string(), z.array(part).min(1)]);

const toolCall = z.strictObject({
  id: z.string(),
  type: z.literal('function'),
  function: z.strictObject({ name: z.string(), arguments: z.string() }),
});

const message = z.union([
  z.strictObject({ role: z.enum(['system', 'developer', 'user']), content, name: z.string().optional() }),
  z.strictObject({
    role: z.literal('assistant'),
    content: content.nullish(),
    tool_calls: z.array(toolCall).min(1).nullish(),
    name: z.string().optional(),
    refusal: ignored,
  }),
  z.strictObject({ role: z.literal('tool'), content, tool_call_id: z.string() }),
]);

const functionName = z.string().regex(/^[\w-]{1,64}$/);
const tool = z.strictObject({
  type: z.literal('function'),
  function: z.strictObject({
    name: functionName,
    description: z.string().nullish(),
    parameters: z.record(z.string(), z.unknown()).nullish().describe('JSON schema of its arguments'),
    strict: z.boolean().nullish().describe('Allow no arguments that the schema does not mention. Default true'),
  }),
});
const toolChoice = z.union([
  z.enum(['none', 'auto', 'required']),
  z.strictObject({ type: z.literal('function'), function: z.strictObject({ name: functionName }) }),
]);

export const chatRequest = z.strictObject({
  ...common,
  messages: z.array(message).min(1),
  max_completion_tokens: maxTokens(1),
  logprobs: z.boolean().nullish().describe('Log-probabilities of the tokens, before penalties and temperature'),
  top_logprobs: topLogprobs.describe('And of so many of the most likely ones'),
  tools: z
    .array(tool)
    .max(maxTools)
    .nullish()
    .describe('Functions that the model may call, where its template knows of any'),
  tool_choice: toolChoice.nullish(),
  parallel_tool_calls: z.boolean().nullish().describe('Whether an answer may hold several calls. Default true'),
  store: ignored,
  metadata: ignored,
  service_tier: ignored,
  prompt_cache_key: ignored,
  prompt_cache_retention: ignored,
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
