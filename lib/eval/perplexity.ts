/** Perplexity of a model on a text. */
import { evaluationWindows, requireInteger } from '../calibration/sequences.ts';
import { loadTokens, type TokenSource } from '../calibration/token-source.ts';
import { openCheckpoint } from '../checkpoint/checkpoint.ts';
import { describeModel } from '../models/registry.ts';
import type { ActivationType, KvCacheType } from '../runtime/arithmetic.ts';
import type { DeviceName } from '../runtime/device.ts';
import { Model } from '../runtime/model.ts';
import type { Weights } from '../runtime/weights.ts';
import { BATCH_TOKENS, cacheTokens, scoreWindows } from './windows.ts';

export interface PerplexityOptions {
  /** Folder of a checkpoint, or a loaded model. */
  model: string | Model;
  /** A file (text, `.jsonl`, `.parquet`, `.u16`, `.u32`), texts, or token ids. */
  data: TokenSource;
  /** Tokens of a window; no more than the model's context. @default 2048 */
  sequenceLength?: number | undefined;
  /** Take only the first so many windows. @default all */
  maxWindows?: number | undefined;
  /** When `model` is a folder: where it runs. @default 'cpu' */
  device?: DeviceName | undefined;
  /** When `model` is a folder. @default 0, one thread for each core */
  threads?: number | undefined;
  /** When `model` is a folder: what weights are held as. @default 'source' */
  weights?: Weights | undefined;
  /** When `model` is a folder: what the KV cache holds keys and values as. @default 'float32' */
  kvCache?: KvCacheType | undefined;
  /** When `model` is a folder: how bf16 weights see their inputs. @default 'float32' */
  activations?: ActivationType | undefined;
  /** When `model` is a folder: see LoadOptions. @default false */
  skipExperts?: boolean | undefined;
  signal?: AbortSignal | undefined;
  onProgress?:
    | ((progress: { readonly done: number; readonly total: number; readonly perplexity: number }) => void)
    | undefined;
  onWarning?: ((message: string) => void) | undefined;
}

export interface PerplexityResult {
  /** exp of the mean negative log-likelihood of all predicted tokens. */
  readonly perplexity: number;
  readonly windows: number;
  readonly sequenceLength: number;
  /** Predicted tokens: all but the first of each window. */
  readonly tokens: number;
  /** Mean negative natural log-likelihood. */
  readonly meanNll: number;
}

/**
 * Non-overlapping windows, each scored on its own: its first token predicts only. Throws `DATA`, `USAGE`, what Model.load
 * throws, `ABORTED`.
 */
export async function perplexity(options: PerplexityOptions): Promise<PerplexityResult> {
  const { model, device, threads, weights, kvCache, activations, skipExperts, signal, onWarning } = options;
  const { sequenceLength = 2048 } = options;
  requireInteger('sequenceLength', sequenceLength, 2);
  if (typeof model !== 'string') return measure(model, options);
  const kvTokens = Math.max(BATCH_TOKENS, cacheTokens(Math.min(sequenceLength, contextOf(model))));
  await using loaded = await Model.load(model, {
    device,
    threads,
    weights,
    kvCache,
    activations,
    skipExperts,
    signal,
    onWarning,
    kvTokens,
  });
  return await measure(loaded, options);
}

/** The longest sequence a checkpoint's model takes. */
function contextOf(path: string): number {
  using checkpoint = openCheckpoint(path);
  return describeModel(checkpoint.config, checkpoint).spec.maxPositions;
}

async function measure(model: Model, options: PerplexityOptions): Promise<PerplexityResult> {
  const { data, maxWindows, signal, onProgress, onWarning } = options;
  const { vocabularySize, maxPositions } = model.spec;
  const documents = await loadTokens(data, { tokenizer: model.tokenizer, vocabularySize, signal, join: '\n\n' });
  const sequenceLength = Math.min(options.sequenceLength ?? 2048, maxPositions);
  const windows = evaluationWindows(documents, { sequenceLength, maxWindows });
  for (const warning of windows.warnings) onWarning?.(warning);
  let total = 0;
  let tokens = 0;
  let done = 0;
  for await (const scores of scoreWindows(model, windows.sequences, signal)) {
    for (const score of scores) total -= score;
    tokens += scores.length;
    onProgress?.({ done: ++done, total: windows.count, perplexity: Math.exp(total / tokens) });
  }
  const meanNll = total / tokens;
  return {
    perplexity: Math.exp(meanNll),
    windows: windows.count,
    sequenceLength: windows.sequenceLength,
    tokens,
    meanNll,
  };
}
