/** Generation: a prompt to tokens, tokens to pieces of text; the steps between are the scheduler's. */
import { EspalierError } from '../errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import { encodeChat } from '../tokenizer/encode-chat.ts';
import { encodeAtMost } from '../tokenizer/long-text.ts';
import { TextStream } from '../tokenizer/text-stream.ts';
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

/** Pieces that may lie unread before the generation waits for its reader. */
const PIECES_AHEAD = 4;

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
  const endTokens = ignoreEos ? [] : model.spec.eosTokenIds;
  const pieces: GeneratedPiece[] = [];
  let produced = 0;
  let notify = () => {};
  const ticket = model.scheduler.start({
    ids,
    sampling,
    signal,
    accept(id) {
      const piece = pieceOf(id);
      pieces.push(piece);
      notify();
      return piece.finishReason === undefined;
    },
    ready: () => pieces.length < PIECES_AHEAD,
  });
  let failure: { readonly error: unknown } | undefined;
  ticket.done.catch((error: unknown) => {
    failure = { error };
    notify();
  });
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
  const { maxPositions } = model.spec;
  if (typeof prompt === 'string') return [...encodeAtMost(tokenizer, prompt, maxPositions)];
  return encodeChat(tokenizer, prompt, { template: await model.chatTemplate() }, maxPositions);
}

function isChat(prompt: Exclude<Prompt, string>): prompt is readonly ChatMessage[] {
  return prompt.length > 0 && typeof prompt[0] === 'object';
}
