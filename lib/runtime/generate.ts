/** Generation: prefill in chunks, then a token a step. */
import { EspalierError } from '../errors.ts';
import type { NativeSample } from '../native.ts';
import { type ChatMessage, renderChat } from '../tokenizer/chat-template.ts';
import { TextStream } from '../tokenizer/text-stream.ts';
import { KvSequence } from './kv-blocks.ts';
import type { Model } from './model.ts';
import { type ResolvedSampling, resolveSampling, type SamplingOptions } from './sampling.ts';

/** A text, token ids, or the messages of a chat for a model that has a chat template. */
export type Prompt = string | Uint32Array | readonly number[] | readonly ChatMessage[];

export interface GenerateOptions extends SamplingOptions {
  /** Go on past end-of-sequence tokens. @default false */
  ignoreEos?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

export interface GeneratedPiece {
  /** Whole characters that became certain; '' while a character or a possible stop string is incomplete. */
  readonly text: string;
  /** Token ids generated in this step. */
  readonly ids: readonly number[];
  /**
   * On the last piece: `stop` for an end token or stop string, `length` for maxTokens or a full context.
   */
  readonly finishReason?: 'stop' | 'length';
}

/** Tokens of a prompt that run in one step; an abort is noticed between two. */
const PREFILL_CHUNK = 512;

export async function* generate(
  model: Model,
  prompt: Prompt,
  options: GenerateOptions,
): AsyncGenerator<GeneratedPiece, void> {
  const { ignoreEos = false, signal, ...rest } = options;
  const sampling = resolveSampling(rest);
  const ids = await promptIds(model, prompt);
  const limit = Math.min(sampling.maxTokens, model.spec.maxPositions - ids.length);
  if (limit < 1) {
    throw new EspalierError(
      'CONTEXT_FULL',
      `the prompt has ${ids.length} tokens; the model's context of ${model.spec.maxPositions} leaves no room to generate`,
    );
  }
  const stream = textStream(model, sampling);
  const sequence = new KvSequence(model.kv);
  const all = [...ids];
  try {
    for (let produced = 1; ; produced++) {
      const cached = produced === 1 ? 0 : all.length - 1;
      const id = await nextToken(model, sequence, all, cached, sampling, signal);
      all.push(id);
      if (!ignoreEos && model.spec.eosTokenIds.includes(id)) {
        yield { text: stream?.end() ?? '', ids: [id], finishReason: 'stop' };
        return;
      }
      const text = stream?.push(id) ?? '';
      if (stream?.stopped !== undefined) {
        yield { text, ids: [id], finishReason: 'stop' };
        return;
      }
      if (produced === limit) {
        yield { text: text + (stream?.end() ?? ''), ids: [id], finishReason: 'length' };
        return;
      }
      yield { text, ids: [id] };
    }
  } finally {
    sequence.release();
  }
}

/** Runs what is not cached yet and draws the token after it. */
async function nextToken(
  model: Model,
  sequence: KvSequence,
  ids: readonly number[],
  cached: number,
  sampling: ResolvedSampling,
  signal: AbortSignal | undefined,
): Promise<number> {
  for (let position = cached; ; position += PREFILL_CHUNK) {
    const tokens = Int32Array.from(ids.slice(position, position + PREFILL_CHUNK));
    const end = position + tokens.length;
    const slices = [{ count: tokens.length, position, blocks: sequence.table(end) }];
    const samples = end === ids.length ? [sampleRequest(tokens.length - 1, ids, sampling)] : [];
    const result = await model.step({ tokens, slices, samples }, signal);
    if (end === ids.length) return result.samples[0]!;
  }
}

function sampleRequest(row: number, ids: readonly number[], sampling: ResolvedSampling): NativeSample {
  const { temperature, topK, topP, minP, repetitionPenalty, seed } = sampling;
  const history = repetitionPenalty === 1 ? {} : { history: Int32Array.from(ids) };
  // The draw is numbered by its position, so that the same context and seed give the same token.
  return { row, temperature, topK, topP, minP, repetitionPenalty, seed, step: ids.length, ...history };
}

function textStream(model: Model, { stop }: ResolvedSampling): TextStream | undefined {
  if (model.tokenizer !== undefined) return new TextStream(model.tokenizer, { stop });
  if (stop.length === 0) return undefined;
  throw new EspalierError('TOKENIZER', 'stop strings need a tokenizer, and the model has no tokenizer.json', {
    file: model.path,
  });
}

/** The tokens a prompt stands for, checked, at least one. @throws USAGE, TOKENIZER */
export async function promptIds(model: Model, prompt: Prompt): Promise<readonly number[]> {
  const ids = typeof prompt === 'string' || isChat(prompt) ? await encodePrompt(model, prompt) : [...prompt];
  const bad = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= model.spec.vocabularySize);
  if (bad !== undefined) {
    throw new EspalierError('USAGE', `token id ${bad} is outside the vocabulary of ${model.spec.vocabularySize}`, {
      field: 'prompt',
    });
  }
  if (ids.length > 0) return ids;
  // An empty prompt starts a text.
  const start = model.spec.bosTokenId ?? model.spec.eosTokenIds[0];
  if (start === undefined) throw new EspalierError('USAGE', 'the prompt has no tokens', { field: 'prompt' });
  return [start];
}

async function encodePrompt(model: Model, prompt: string | readonly ChatMessage[]): Promise<readonly number[]> {
  const { tokenizer } = model;
  if (tokenizer === undefined) {
    throw new EspalierError('TOKENIZER', 'the model has no tokenizer.json; give the prompt as token ids', {
      file: model.path,
    });
  }
  if (typeof prompt === 'string') return [...tokenizer.encode(prompt)];
  const template = await model.chatTemplate();
  const { bosToken, eosToken } = tokenizer;
  const text = renderChat(prompt, { template, bosToken, eosToken });
  return [...tokenizer.encode(text, { addSpecialTokens: false })];
}

function isChat(prompt: Exclude<Prompt, string>): prompt is readonly ChatMessage[] {
  return prompt.length > 0 && typeof prompt[0] === 'object';
}
