/** Generation: a prompt to tokens, tokens to pieces of text; the steps between are the scheduler's. */
import { throwIfAborted } from '../abort.ts';
import { EspalierError } from '../errors.ts';
import type { AnswerFormat } from '../grammar/format.ts';
import type { Matcher } from '../grammar/grammars.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import { encodeChat } from '../tokenizer/encode-chat.ts';
import { encodeAtMost } from '../tokenizer/long-text.ts';
import { TextStream } from '../tokenizer/text-stream.ts';
import { Constraint } from './constraint.ts';
import type { TokenLogprob } from './logprobs.ts';
import type { Model } from './model.ts';
import { type ResolvedSampling, resolveSampling, type SamplingOptions } from './sampling.ts';
import type { Ticket } from './scheduler.ts';
import { GenerationTask, ScoringTask } from './tasks.ts';

/** A text, token ids, or the messages of a chat for a model that has a chat template. */
export type Prompt = string | Uint32Array | readonly number[] | readonly ChatMessage[];

export interface GenerateOptions extends SamplingOptions {
  /** Go on past end-of-sequence tokens; an answer that has a `format` ends all the same. @default false */
  ignoreEos?: boolean | undefined;
  /**
   * What the answer's text must be. Tokens that cannot go on with it are never drawn, so an answer that ends by itself has
   * the form; one that ends by `maxTokens` is the beginning of one that has. @default any text
   */
  format?: AnswerFormat | undefined;
  /**
   * Special tokens that belong to the answer's text, such as those that a model marks calls of tools with: the text has their
   * names, and so may that of a `format`. @default none: they are left out
   */
  specialTokens?: readonly string[] | undefined;
  signal?: AbortSignal | undefined;
}

export type FinishReason = 'stop' | 'length';

export interface GeneratedPiece {
  /** Whole characters that became certain; '' while a character or a possible stop string is incomplete. */
  readonly text: string;
  /** Token ids generated in this step. */
  readonly ids: readonly number[];
  /** Of each of `ids`, where `topLogprobs` was given. */
  readonly logprobs?: readonly TokenLogprob[];
  /**
   * On the last piece: `stop` for an end token or stop string, `length` for maxTokens or a full context.
   */
  readonly finishReason?: FinishReason;
}

/** Pieces that may lie unread before the generation waits for its reader. */
const PIECES_AHEAD = 4;

export async function* generate(
  model: Model,
  prompt: Prompt,
  options: GenerateOptions,
): AsyncGenerator<GeneratedPiece, void> {
  const { ignoreEos = false, signal, format, specialTokens, ...rest } = options;
  const sampling = resolveSampling(rest);
  checkBias(model, sampling);
  const ids = await promptIds(model, prompt);
  const limit = Math.min(sampling.maxTokens, model.spec.maxPositions - ids.length);
  if (limit < 1) {
    throw new EspalierError(
      'CONTEXT_FULL',
      `the prompt has ${ids.length} tokens; the model's context of ${model.spec.maxPositions} leaves no room to generate`,
    );
  }
  const stream = textStream(model, sampling, specialTokens);
  const endTokens = ignoreEos && format === undefined ? [] : model.spec.eosTokenIds;
  const pieces: GeneratedPiece[] = [];
  let produced = 0;
  let notify = () => {};
  let failure: { readonly error: unknown } | undefined;
  const fail = (error: unknown) => {
    failure = { error };
    notify();
  };
  let wake = () => {};
  model.requireLive();
  throwIfAborted(signal);
  const matcher = format === undefined ? undefined : await model.grammars.start(format, specialTokens);
  const constraint = matcher === undefined ? undefined : new Constraint(matcher, () => wake(), fail);
  const task = new GenerationTask({
    ids,
    sampling,
    constraint,
    signal,
    accept(id, logprob) {
      const piece = pieceOf(id);
      pieces.push(logprob === undefined ? piece : { ...piece, logprobs: [logprob] });
      notify();
      if (piece.finishReason !== undefined) return false;
      constraint?.advance(id);
      return true;
    },
    ready: () => pieces.length < PIECES_AHEAD,
  });
  const ticket = startTask(model, task, matcher);
  wake = ticket.wake;
  ticket.done.catch(fail);
  try {
    for (;;) {
      model.requireLive();
      if (failure !== undefined) throw failure.error;
      const piece = pieces.shift();
      if (piece === undefined) {
        await new Promise<void>((resolve) => {
          notify = resolve;
        });
        continue;
      }
      ticket.wake();
      yield piece;
      if (piece.finishReason !== undefined) return;
    }
  } finally {
    ticket.cancel();
    await ticket.done.catch(() => {});
    matcher?.end();
  }

  function pieceOf(id: number): GeneratedPiece {
    produced++;
    if (endTokens.includes(id)) return { text: stream?.end() ?? '', ids: [id], finishReason: 'stop' };
    const text = stream?.push(id) ?? '';
    if (stream?.stopped !== undefined) return { text, ids: [id], finishReason: 'stop' };
    if (produced === limit) return { text: text + (stream?.end() ?? ''), ids: [id], finishReason: 'length' };
    return { text, ids: [id] };
  }
}

function startTask(model: Model, task: GenerationTask, matcher: Matcher | undefined): Ticket {
  try {
    return model.scheduler.start(task);
  } catch (error) {
    matcher?.end();
    throw error;
  }
}

export interface ScoreOptions {
  /** Give so many of the most likely tokens in each one's place, too. Integer in [0, 20]. @default 0 */
  topLogprobs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** What `Model.score` does. */
export async function score(model: Model, prompt: Prompt, options: ScoreOptions): Promise<(TokenLogprob | null)[]> {
  const { signal, topLogprobs } = options;
  const top = resolveSampling({ topLogprobs }).topLogprobs ?? 0;
  const ids = await promptIds(model, prompt);
  if (ids.length > model.spec.maxPositions) {
    throw new EspalierError(
      'CONTEXT_FULL',
      `the text has ${ids.length} tokens, the model's context ${model.spec.maxPositions}`,
      { field: 'prompt' },
    );
  }
  model.requireLive();
  if (ids.length === 1) return [null];
  const task = new ScoringTask(ids, top, signal);
  await model.scheduler.start(task).done;
  return [null, ...task.scores];
}

/** @throws USAGE for a bias of a token that the model does not have */
function checkBias({ spec }: Model, { logitBias }: ResolvedSampling): void {
  for (const id of logitBias.keys()) {
    if (id < spec.vocabularySize) continue;
    throw new EspalierError('USAGE', `logitBias: token id ${id} is outside the vocabulary of ${spec.vocabularySize}`, {
      field: 'logitBias',
    });
  }
}

function textStream(
  model: Model,
  { stop }: ResolvedSampling,
  specialTokens: readonly string[] | undefined,
): TextStream | undefined {
  if (model.tokenizer !== undefined) return new TextStream(model.tokenizer, { stop, specialTokens });
  if (stop.length === 0) return undefined;
  throw new EspalierError('TOKENIZER', 'stop strings need a tokenizer, and the model has no tokenizer.json', {
    file: model.path,
  });
}

/**
 * The tokens a prompt stands for, checked, at least one.
 * @param tools What the chat template may tell the model of.
 * @throws USAGE, TOKENIZER
 */
export async function promptIds(model: Model, prompt: Prompt, tools?: readonly object[]): Promise<readonly number[]> {
  const isText = typeof prompt === 'string' || isChat(prompt);
  const ids = isText ? await encodePrompt(model, prompt, tools) : [...prompt];
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

async function encodePrompt(
  model: Model,
  prompt: string | readonly ChatMessage[],
  tools: readonly object[] | undefined,
): Promise<readonly number[]> {
  const { tokenizer } = model;
  if (tokenizer === undefined) {
    throw new EspalierError('TOKENIZER', 'the model has no tokenizer.json; give the prompt as token ids', {
      file: model.path,
    });
  }
  const { maxPositions } = model.spec;
  if (typeof prompt === 'string') return [...encodeAtMost(tokenizer, prompt, maxPositions)];
  return encodeChat(tokenizer, prompt, { template: await model.chatTemplate(), tools }, maxPositions);
}

function isChat(prompt: Exclude<Prompt, string>): prompt is readonly ChatMessage[] {
  return prompt.length > 0 && typeof prompt[0] === 'object';
}
