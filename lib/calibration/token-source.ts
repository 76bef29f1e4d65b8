import { stat } from 'node:fs/promises';
import { extname } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { throwIfAborted } from '../abort.ts';
import { EspalierError, fromSystemError } from '../errors.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { dataError } from './data-error.ts';
import { readIdFile } from './id-files.ts';
import { readParquet } from './parquet.ts';
import { maxTextBytes, readJsonLines, readTextFile } from './text-files.ts';

/**
 * Where calibration and evaluation tokens come from.
 * - A path: `.jsonl` (also `.ndjson`) and `.parquet` hold documents in a field or column `text`; `.u16` and `.u32` are
 *   raw little-endian token ids; any other file is one UTF-8 text.
 * - `{ text }`, or an array of strings: one document, or many.
 * - Token ids: a typed array, a plain array of integers, or an array of typed arrays.
 */
export type TokenSource =
  | string
  | { readonly text: string | readonly string[] }
  | readonly string[]
  | Uint32Array
  | Uint16Array
  | readonly number[]
  | readonly (Uint32Array | Uint16Array)[];

export interface LoadTokensOptions {
  /** Needed for text; ids come without. */
  tokenizer?: Tokenizer | undefined;
  /** Ids must be below this, the model's vocabulary size. @default not checked */
  vocabularySize?: number | undefined;
  /**
   * Join documents by this text and encode them as one, as published perplexities are measured (`'\n\n'` between the
   * rows of WikiText). Without it documents are encoded one by one. Ids are never joined.
   */
  join?: string | undefined;
  /** Stop reading documents, or ids of a file, once there are so many tokens. @default Infinity */
  maxTokens?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** Tokens as they were found, before they are cut into sequences. */
export interface Documents {
  /** `ids` are cut in their order; of `text`, calibration samples. */
  readonly kind: 'ids' | 'text';
  /** What the tokens came from, for messages. */
  readonly name: string;
  /** None is empty. Text has the special tokens that the tokenizer puts around a text. */
  readonly documents: readonly Uint32Array[];
  /** Put between two documents when they are cut into sequences: the tokenizer's end token. */
  readonly separator: number | undefined;
  readonly warnings: readonly string[];
}

/**
 * Reads text and encodes it, or reads ids.
 * @throws EspalierError `DATA` naming the file, the line, row or position, and what to do; `TOKENIZER` for text without a
 *   tokenizer; `IO` where the system refuses; `ABORTED`.
 */
export async function loadTokens(source: TokenSource, options: LoadTokensOptions = {}): Promise<Documents> {
  const found = await open(source, options);
  if ('ids' in found) {
    checkIds(found.ids, found.name, options.vocabularySize);
    return { kind: 'ids', name: found.name, documents: found.ids, separator: undefined, warnings: [] };
  }
  const { tokenizer } = options;
  if (tokenizer === undefined) {
    const message = `${found.name} must be encoded, and the model has no tokenizer.json; give token ids as .u16 or .u32`;
    throw new EspalierError('TOKENIZER', message, { file: found.name });
  }
  const warnings: string[] = [];
  const texts = options.join === undefined ? found.texts : joined(found.texts, options.join, found.name, warnings);
  const documents = await encodeAll(texts, tokenizer, options);
  if (documents.length === 0) throw dataError(found.name, 'has no text', 'give a file with text in it');
  return { kind: 'text', name: found.name, documents, separator: tokenizer.eosId, warnings };
}

type Texts = Iterable<string> | AsyncIterable<string>;
type Found = { name: string } & ({ texts: Texts } | { ids: Uint32Array[] });

async function open(source: TokenSource, options: LoadTokensOptions): Promise<Found> {
  if (typeof source === 'string') return openFile(source, options.maxTokens ?? Number.POSITIVE_INFINITY);
  if (source instanceof Uint32Array) return { name: 'the token ids', ids: nonEmpty([source]) };
  if (source instanceof Uint16Array) return { name: 'the token ids', ids: nonEmpty([Uint32Array.from(source)]) };
  const items = Array.isArray(source) ? (source as readonly unknown[]) : textsOf(source);
  if (items.every((item) => typeof item === 'string')) return { name: 'the texts', texts: items as string[] };
  if (items.every((item) => item instanceof Uint32Array || item instanceof Uint16Array)) {
    return { name: 'the token ids', ids: nonEmpty(items.map((item) => Uint32Array.from(item as Uint32Array))) };
  }
  return { name: 'the token ids', ids: nonEmpty([idsFromNumbers(items)]) };
}

function textsOf(source: unknown): readonly unknown[] {
  const text = typeof source === 'object' && source !== null && 'text' in source ? source.text : undefined;
  if (typeof text === 'string') return [text];
  if (Array.isArray(text) && text.every((item) => typeof item === 'string')) return text;
  throw dataError('the source', 'is none that tokens can come from', 'give a path, { text }, texts or token ids');
}

function idsFromNumbers(items: readonly unknown[]): Uint32Array {
  for (const [position, id] of items.entries()) {
    if (Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) < 2 ** 32) continue;
    const found = typeof id === 'number' ? id : `a ${typeof id}`;
    throw dataError('the token ids', `have ${found} at position ${position}`, 'ids are integers from 0 to 2^32 - 1');
  }
  return Uint32Array.from(items as number[]);
}

function nonEmpty(ids: Uint32Array[]): Uint32Array[] {
  const kept = ids.filter((each) => each.length > 0);
  if (kept.length === 0) throw dataError('the token ids', 'are empty', 'give at least one sequence');
  return kept;
}

async function openFile(file: string, maxTokens: number): Promise<Found> {
  const found = await stat(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') throw dataError(file, 'does not exist', 'give the path of a data file', error);
    throw fromSystemError(error, 'read', file);
  });
  if (!found.isFile()) throw dataError(file, 'is not a regular file', 'give the path of a data file');
  if (found.size === 0) throw dataError(file, 'is empty', 'give a file with text or token ids in it');
  switch (extname(file).toLowerCase()) {
    case '.u16':
      return { name: file, ids: [await readIdFile(file, found.size, 2, maxTokens)] };
    case '.u32':
      return { name: file, ids: [await readIdFile(file, found.size, 4, maxTokens)] };
    case '.jsonl':
    case '.ndjson':
      return { name: file, texts: readJsonLines(file) };
    case '.parquet':
      return { name: file, texts: readParquet(file) };
    default:
      return { name: file, texts: [await readTextFile(file, found.size)] };
  }
}

/** All documents as one text, as far as one text can be encoded. */
async function* joined(texts: Texts, separator: string, name: string, warnings: string[]): AsyncGenerator<string> {
  const parts: string[] = [];
  let length = 0;
  for await (const text of texts) {
    length += text.length + separator.length;
    if (length > maxTextBytes) {
      warnings.push(`${name}: only the first ${parts.length} documents are used, ${maxTextBytes} characters`);
      break;
    }
    parts.push(text);
  }
  yield parts.join(separator);
}

async function encodeAll(texts: Texts, tokenizer: Tokenizer, options: LoadTokensOptions): Promise<Uint32Array[]> {
  const { maxTokens = Number.POSITIVE_INFINITY, vocabularySize, signal } = options;
  const documents: Uint32Array[] = [];
  let tokens = 0;
  for await (const text of texts) {
    throwIfAborted(signal);
    if (text.trim() === '') continue;
    const ids = tokenizer.encode(text);
    checkIds([ids], tokenizer.file, vocabularySize);
    documents.push(ids);
    tokens += ids.length;
    if (tokens >= maxTokens) break;
    await nextTurn();
  }
  return documents;
}

function checkIds(documents: readonly Uint32Array[], name: string, vocabularySize = 2 ** 32): void {
  let position = 0;
  for (const ids of documents) {
    const bad = ids.findIndex((id) => id >= vocabularySize);
    if (bad >= 0) {
      const problem = `has token id ${ids[bad]} at position ${position + bad}, the model knows 0 to ${vocabularySize - 1}`;
      throw dataError(name, problem, "it was made for another model's tokenizer");
    }
    position += ids.length;
  }
}
