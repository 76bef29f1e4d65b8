/**
 * Trained models against references that Espalier did not make: greedy continuations by transformers (float32), and
 * perplexities before and after pruning by an independent float32 implementation. The goldens of the embedded model are
 * always tested, those of the larger models where the folder of shared models stands beside the repository.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type MethodName, Model, perplexity, prune } from '../lib/index.ts';
import { demoGoldens, demoModel, sharedModel, sharedModels } from './support/models.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';

interface Case {
  readonly name: string;
  readonly model: string;
  readonly goldens: string;
}

const all: Case[] = [{ name: 'demo', model: demoModel, goldens: demoGoldens }];
for (const name of ['olmoe-17m', 'mixtral-30m']) {
  const folder = sharedModel(name);
  if (folder !== undefined) all.push({ name, model: folder, goldens: folder });
  else test(name, ({ skip }) => skip(`there is no ${sharedModels} on this machine`));
}

const json = (folder: string, file: string) => JSON.parse(readFileSync(join(folder, file), 'utf8'));

/**
 * Every row takes minutes on two cores, so without ESPALIER_ALL_GOLDENS=1 a model is tested on the rows that reach other
 * code than those before them: each method once, n:m once and router-weighted SparseGPT once.
 */
const everyRow = process.env.ESPALIER_ALL_GOLDENS === '1';
const chosen: Record<string, readonly string[]> = {
  demo: ['dense', 'magnitude:0.5', 'wanda:4:8', 'moe-pruner:0.7', 'sparsegpt:0.5', 'moe-sparsegpt:2:4'],
  'olmoe-17m': ['dense', 'sparsegpt:0.5'],
  'mixtral-30m': ['dense'],
};

interface Row {
  readonly method: MethodName;
  readonly routerWeighting?: boolean;
  readonly sparsity?: number;
  readonly pattern?: string;
}

/** `moe-sparsegpt:2:4` → the options that mean it. */
function parseRow(row: string): Row {
  const [name = '', ...amount] = row.split(':');
  const budget = amount.length === 2 ? { pattern: amount.join(':') } : { sparsity: Number(amount[0]) };
  if (name === 'moe-sparsegpt') return { method: 'sparsegpt', routerWeighting: true, ...budget };
  return { method: name as MethodName, ...budget };
}

/** In percent. */
function tolerance(row: string): number {
  if (row === 'dense') return 0.1;
  return row.includes('sparsegpt') ? 1.5 : 0.5;
}

const table: string[] = [];
afterAll(() => console.log(['row, golden, ours, difference in %', ...table].join('\n')));

describe.each(all)('$name', ({ name, model, goldens }) => {
  const golden = json(goldens, 'golden.json') as { sequenceLength: number; perplexity: Record<string, number> };
  const { sequenceLength } = golden;
  const rows = Object.keys(golden.perplexity).filter((row) => everyRow || chosen[name]!.includes(row));
  const left = Object.keys(golden.perplexity).length - rows.length;
  if (left > 0) console.log(`${name}: ${left} rows of golden.json are left out; ESPALIER_ALL_GOLDENS=1 runs them`);

  test('continues the prompts as transformers does', async () => {
    const { greedy } = json(goldens, 'report.json') as { greedy: Record<string, { ids: number[]; text: string }> };
    expect(Object.keys(greedy).length).toBeGreaterThan(0);
    await using loaded = await Model.load(model);
    for (const [prompt, { ids, text }] of Object.entries(greedy)) {
      // The reference's ids hold the prompt too, and end early where the end token came.
      const start = [...loaded.tokenizer!.encode(prompt)];
      expect(ids.slice(0, start.length)).toEqual(start);
      const found: number[] = [];
      let written = prompt;
      for await (const piece of loaded.generate(prompt, { maxTokens: 48 })) {
        found.push(...piece.ids);
        written += piece.text;
      }
      expect(found, prompt).toEqual(ids.slice(start.length));
      expect(written).toBe(text);
    }
  });

  test.each(rows)('has the perplexity of the reference: %s', { timeout: 300_000 }, async (row) => {
    let measured = model;
    if (row !== 'dense') {
      measured = join(temporaryFolder(), 'pruned');
      const calibration = join(goldens, 'golden-calibration.u16');
      await prune({ model, output: measured, calibration, samples: 128, sequenceLength, ...parseRow(row) });
    }
    const data = join(goldens, 'golden-eval.u16');
    const result = await perplexity({ model: measured, data, sequenceLength });
    expect(result.windows).toBe(100);
    expect(result.tokens).toBe(100 * (sequenceLength - 1));
    const wanted = golden.perplexity[row]!;
    const difference = (result.perplexity / wanted - 1) * 100;
    table.push(`${name} ${row}, ${wanted}, ${result.perplexity.toFixed(4)}, ${difference.toFixed(4)}`);
    expect(Math.abs(difference)).toBeLessThan(tolerance(row));
  });
});
