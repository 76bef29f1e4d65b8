import { createHash } from 'node:crypto';
import { EspalierError } from '../errors.ts';
import { dataError } from './data-error.ts';
import type { Documents } from './token-source.ts';

/** Token sequences of one length, as calibration and perplexity take them. */
export interface TokenSequences {
  /** All sequences one after the other: `count · sequenceLength` ids. */
  readonly ids: Uint32Array;
  /** Views of `ids`, one a sequence. */
  readonly sequences: readonly Uint32Array[];
  readonly count: number;
  readonly sequenceLength: number;
  /** SHA-256 of `ids` as little-endian 32-bit integers, in hexadecimal. */
  readonly hash: string;
  readonly warnings: readonly string[];
}

export interface CalibrationOptions {
  /** Sequences to take. @default 128 */
  samples?: number;
  /** Tokens in each. @default 2048 */
  sequenceLength?: number;
  /** Chooses which of the sequences of a text are taken. @default 0 */
  seed?: number | bigint;
}

/**
 * Sequences to collect statistics on.
 *
 * The documents are joined in order, the end token between two, and cut into consecutive sequences; the last partial one
 * is dropped. Of ids the first `samples` are taken. Of text, sequence i gets the key SHA-256(`espalier:<seed>:<i>`), and
 * the `samples` smallest keys are taken, in the order of the text: every sequence is as likely, none is taken twice, and
 * more samples of the same seed contain fewer. With less than one whole sequence, what there is becomes the only one.
 *
 * @throws EspalierError `DATA` with fewer than two tokens, `USAGE` for an option that is no count.
 */
export function calibrationSequences(documents: Documents, options: CalibrationOptions = {}): TokenSequences {
  const { samples = 128, sequenceLength = 2048, seed = 0 } = options;
  requireInteger('samples', samples, 1);
  requireInteger('sequenceLength', sequenceLength, 2);
  const stream = joinDocuments(documents);
  const { length, available, warnings } = measure(stream, sequenceLength, documents);
  if (available < samples) {
    warnings.push(
      `${documents.name}: ${samples} sequences of ${sequenceLength} tokens were asked for, there are ${available}` +
        ` (${stream.length} tokens); statistics of so few tokens are less certain`,
    );
  }
  const all = Array.from({ length: available }, (_, i) => i);
  const chosen = documents.kind === 'ids' || available <= samples ? all.slice(0, samples) : draw(all, samples, seed);
  return collect(stream, chosen, length, warnings);
}

export interface EvaluationOptions {
  /** Tokens in each window. */
  sequenceLength: number;
  /** Take only the first so many. @default all */
  maxWindows?: number | undefined;
}

/**
 * Windows to measure perplexity on: the documents joined in order, the end token between two, and cut into consecutive
 * windows that do not overlap. The last partial window is dropped unless it is the only one.
 * @throws EspalierError `DATA` with fewer than two tokens: the first predicts, the second is predicted;
 *   `USAGE` for an option that is no count.
 */
export function evaluationWindows(documents: Documents, options: EvaluationOptions): TokenSequences {
  const { sequenceLength, maxWindows } = options;
  requireInteger('sequenceLength', sequenceLength, 2);
  if (maxWindows !== undefined) requireInteger('maxWindows', maxWindows, 1);
  const stream = joinDocuments(documents);
  const { length, available, warnings } = measure(stream, sequenceLength, documents);
  const chosen = Array.from({ length: Math.min(available, maxWindows ?? available) }, (_, i) => i);
  return collect(stream, chosen, length, warnings);
}

/** @throws USAGE naming `field` */
export function requireInteger(field: string, value: number, least: number): void {
  if (Number.isSafeInteger(value) && value >= least) return;
  throw new EspalierError('USAGE', `${field} must be an integer of at least ${least}; found ${value}`, { field });
}

function joinDocuments({ documents, separator }: Documents): Uint32Array {
  const gap = separator === undefined ? 0 : 1;
  const stream = new Uint32Array(documents.reduce((sum, ids, i) => sum + ids.length + (i > 0 ? gap : 0), 0));
  let at = 0;
  for (const ids of documents) {
    if (at > 0 && separator !== undefined) stream[at++] = separator;
    stream.set(ids, at);
    at += ids.length;
  }
  return stream;
}

/** How long sequences can be, how many whole ones there are, and a warning if not even one. */
function measure(stream: Uint32Array, sequenceLength: number, { name, warnings }: Documents) {
  if (stream.length < 2) throw dataError(name, `has ${stream.length} tokens`, 'give a text of at least two');
  const length = Math.min(sequenceLength, stream.length);
  const available = Math.floor(stream.length / length);
  const short = `${name}: only ${stream.length} tokens, less than one sequence of ${sequenceLength}`;
  return { length, available, warnings: length < sequenceLength ? [...warnings, short] : [...warnings] };
}

function draw(all: readonly number[], samples: number, seed: number | bigint): number[] {
  const keyed = all.map((i) => ({ i, key: createHash('sha256').update(`espalier:${seed}:${i}`).digest('hex') }));
  keyed.sort((a, b) => (a.key < b.key ? -1 : 1));
  return keyed
    .slice(0, samples)
    .map(({ i }) => i)
    .sort((a, b) => a - b);
}

function collect(stream: Uint32Array, chosen: readonly number[], length: number, warnings: string[]): TokenSequences {
  const ids = new Uint32Array(chosen.length * length);
  const sequences = chosen.map((index, i) => {
    ids.set(stream.subarray(index * length, (index + 1) * length), i * length);
    return ids.subarray(i * length, (i + 1) * length);
  });
  const hash = createHash('sha256').update(ids).digest('hex');
  return { ids, sequences, count: chosen.length, sequenceLength: length, hash, warnings };
}
