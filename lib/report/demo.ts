/** The whole story on the embedded model: inspect, measure, prune, save, reload, generate. */
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { convertCheckpoint } from '../checkpoint/convert.ts';
import { perplexity } from '../eval/perplexity.ts';
import { packageRoot } from '../native.ts';
import { prune } from '../prune/prune.ts';
import type { RecipeOptions } from '../prune/recipe.ts';
import { Model } from '../runtime/model.ts';
import type { Weights } from '../runtime/weights.ts';
import { decodeSpeeds } from './decode-speed.ts';
import { type DemoCorpus, demoCorpus } from './demo-corpus.ts';
import { type Inspection, inspect } from './inspect.ts';

/** What is pruned; one run is saved sparse at once and converted to dense, the others the other way round. */
const recipes: readonly (RecipeOptions & { readonly name: string })[] = [
  { name: 'MoE-Pruner 50 %', method: 'moe-pruner', sparsity: 0.5 },
  {
    name: 'SparseGPT, router-weighted, 50 %',
    method: 'sparsegpt',
    routerWeighting: true,
    sparsity: 0.5,
    save: 'sparse',
  },
  { name: 'MoE-Pruner 2:4', method: 'moe-pruner', pattern: '2:4' },
  { name: 'SparseGPT, router-weighted, 2:4', method: 'sparsegpt', routerWeighting: true, pattern: '2:4' },
];

const prompt = 'The city was founded in';
const continuationTokens = 40;

export interface DemoOptions {
  threads?: number | undefined;
  weights?: Weights | undefined;
  /** @default 0 */
  seed?: number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((fraction: number, doing: string) => void) | undefined;
  onWarning?: ((message: string) => void) | undefined;
  /** Called when the model has been inspected. */
  onInspected?: ((inspection: Inspection) => void) | undefined;
}

export interface DemoRow {
  readonly name: string;
  readonly perplexity: number;
  /** Of the expert weights. */
  readonly sparsity: number;
  /** Bytes of the weight files. Sparse is undefined for the dense model, which it would not make smaller. */
  readonly denseBytes: number;
  readonly sparseBytes: number | undefined;
  /** Bytes of the weights as packed for running, and their formats. */
  readonly runBytes: number;
  readonly formats: readonly string[];
  readonly tokensPerSecond: number;
  /** Greedy, after the report's prompt. */
  readonly continuation: string;
}

export interface DemoReport {
  readonly model: string;
  readonly corpus: Omit<DemoCorpus, 'calibration' | 'evaluation'> & {
    readonly calibrationTokens: number;
    readonly evaluationTokens: number;
  };
  readonly prompt: string;
  /** The dense model first. */
  readonly rows: readonly DemoRow[];
  readonly seconds: number;
}

/** Runs everything in a temporary folder that is removed afterwards. Throws what the parts throw. */
export async function runDemo(options: DemoOptions = {}): Promise<DemoReport> {
  const folder = mkdtempSync(join(tmpdir(), 'espalier-demo-'));
  try {
    return await tellStory(folder, options);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

type MeasuredRow = Omit<DemoRow, 'tokensPerSecond' | 'continuation'> & { readonly path: string };

async function tellStory(folder: string, options: DemoOptions): Promise<DemoReport> {
  const { threads, seed = 0, signal, onProgress, onWarning } = options;
  const start = performance.now();
  const model = join(packageRoot, 'models', 'demo');
  const parts = recipes.length + 2.5;
  const tell = (part: number, doing: string) => onProgress?.(part / parts, doing);

  const inspection = await inspect(model, { signal, onWarning });
  options.onInspected?.(inspection);
  const corpus = await demoCorpus(model, {
    threads,
    seed,
    signal,
    onProgress: (fraction) => tell(fraction, 'preparing text'),
  });
  tell(1, 'measuring the dense model');
  const measured: MeasuredRow[] = [
    {
      name: 'dense',
      ...(await measure(model, corpus, options)),
      sparsity: 0,
      denseBytes: weightBytes(model),
      sparseBytes: undefined,
    },
  ];
  for (const [i, { name, ...recipe }] of recipes.entries()) {
    const part = i + 1.5;
    const saved = join(folder, `${i}`);
    const { sparsity } = await prune({
      ...recipe,
      model,
      output: saved,
      calibration: corpus.calibration,
      samples: corpus.calibration.length / corpus.sequenceLength,
      sequenceLength: corpus.sequenceLength,
      threads,
      signal,
      onProgress: (progress) => {
        if (progress.type === 'stage') tell(part + progress.overall * 0.6, `pruning: ${name}`);
        if (progress.type === 'warning') onWarning?.(`${name}: ${progress.message}`);
      },
    });
    const other = join(folder, `${i}-converted`);
    const isSparse = recipe.save === 'sparse';
    await convertCheckpoint({ from: saved, to: isSparse ? 'dense' : 'sparse', output: other, signal });
    tell(part + 0.7, `measuring: ${name}`);
    const [dense, sparse] = isSparse ? [other, saved] : [saved, other];
    // What is measured is the sparse save, loaded again.
    const run = await measure(sparse, corpus, options);
    measured.push({ name, ...run, sparsity, denseBytes: weightBytes(dense), sparseBytes: weightBytes(sparse) });
  }
  tell(recipes.length + 1.5, 'generating');
  const rows = await generateAll(measured, options);
  const { calibration, evaluation, ...text } = corpus;
  return {
    model,
    corpus: { ...text, calibrationTokens: calibration.length, evaluationTokens: evaluation.length },
    prompt,
    rows,
    seconds: (performance.now() - start) / 1000,
  };
}

async function measure(path: string, corpus: DemoCorpus, { threads, weights, signal, onWarning }: DemoOptions) {
  await using model = await Model.load(path, { threads, weights, signal, onWarning });
  const { evaluation: data, sequenceLength } = corpus;
  const result = await perplexity({ model, data, sequenceLength, signal, onWarning });
  const { weightBytes: runBytes, formats } = model.info;
  return { path, perplexity: result.perplexity, runBytes, formats };
}

/** Continuations and speeds, of all models side by side. */
async function generateAll(measured: readonly MeasuredRow[], options: DemoOptions): Promise<DemoRow[]> {
  const { threads, weights, signal } = options;
  const models: Model[] = [];
  try {
    for (const { path } of measured) models.push(await Model.load(path, { threads, weights, signal }));
    const continuations: string[] = [];
    for (const model of models) {
      let text = '';
      for await (const piece of model.generate(prompt, { maxTokens: continuationTokens, signal })) text += piece.text;
      continuations.push(text);
    }
    const speeds = await decodeSpeeds(models, { prompt, signal });
    return measured.map(({ path: _, ...row }, i) => ({
      ...row,
      tokensPerSecond: speeds[i]!,
      continuation: continuations[i]!,
    }));
  } finally {
    for (const model of models) model.dispose();
  }
}

function weightBytes(folder: string): number {
  return readdirSync(folder)
    .filter((name) => name.endsWith('.safetensors'))
    .reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
}
