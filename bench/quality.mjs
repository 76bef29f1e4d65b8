// Perplexity after pruning, a row for each recipe: node bench/quality.mjs MODEL RECIPE... [--calibration FILE] [--data FILE]
//   [--samples 128] [--sequence-length 512] [--weights int4] [--json FILE]
// RECIPE is a file, or JSON such as '[{"weights": {"method": "wanda"}}]'; `dense` stands for none. Calibration and data are
// MODEL/golden-calibration.u16 and MODEL/golden-eval.u16 unless given. Every row runs in a process of its own, so that its
// peak memory is its own; its seconds are those of pruning alone.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Model, perplexity, prune, readRecipe } from '../dist/index.js';
import { formatTable } from '../dist/report/table.js';
import { parseWeights } from '../dist/runtime/weights.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    calibration: { type: 'string' },
    data: { type: 'string' },
    samples: { type: 'string', default: '128' },
    'sequence-length': { type: 'string', default: '512' },
    weights: { type: 'string', default: 'source' },
    json: { type: 'string' },
    row: { type: 'boolean', default: false },
  },
});
const [model, ...recipes] = positionals;
const sequenceLength = Number(values['sequence-length']);
const calibration = values.calibration ?? join(model, 'golden-calibration.u16');
const data = values.data ?? join(model, 'golden-eval.u16');

async function run(recipe, folder) {
  const row = { seconds: 0, experts: '-', sparsity: 0, warnings: [], peakBytes: 0 };
  let path = model;
  if (recipe !== 'dense') {
    const file = existsSync(recipe) ? recipe : join(folder, 'recipe.json');
    if (file !== recipe) writeFileSync(file, recipe);
    path = join(folder, 'pruned');
    const start = performance.now();
    const options = { ...readRecipe(file), samples: Number(values.samples), sequenceLength };
    const result = await prune({ ...options, model, output: path, calibration });
    row.seconds = (performance.now() - start) / 1000;
    row.experts = result.layers.map(({ experts }) => experts.length).join(' ');
    row.sparsity = result.sparsity;
    row.warnings = result.warnings;
  }
  row.peakBytes = process.resourceUsage().maxRSS * 1024;
  const loaded = await Model.load(path, { weights: parseWeights(values.weights) });
  row.perplexity = (await perplexity({ model: loaded, data, sequenceLength })).perplexity;
  loaded.dispose();
  return row;
}

const folder = mkdtempSync(join(tmpdir(), 'espalier-quality-'));
try {
  if (values.row) {
    console.log(JSON.stringify(await run(recipes[0], folder)));
  } else {
    const rows = [];
    for (const recipe of recipes) {
      const options = ['calibration', 'data', 'samples', 'sequence-length', 'weights'].flatMap((name) =>
        values[name] === undefined ? [] : [`--${name}`, values[name]],
      );
      const line = [fileURLToPath(import.meta.url), model, recipe, '--row', ...options];
      const row = JSON.parse(execFileSync(process.execPath, line, { encoding: 'utf8', maxBuffer: 2 ** 24 }));
      rows.push({ recipe: existsSync(recipe) ? basename(recipe) : recipe, ...row });
      const { perplexity: found, seconds } = row;
      console.error(`${rows.at(-1).recipe}: ${found.toFixed(3)} after ${seconds.toFixed(0)} s`);
    }
    const columns = ['recipe', 'perplexity', 'zeros of the experts', 'experts by layer', 's', 'peak MB'];
    const cells = rows.map((row) => [
      row.recipe,
      row.perplexity.toFixed(3),
      `${(row.sparsity * 100).toFixed(1)} %`,
      row.experts,
      row.seconds.toFixed(0),
      (row.peakBytes / 1e6).toFixed(0),
    ]);
    console.log(
      formatTable(
        columns.map((title, i) => ({ title, align: i === 0 ? 'left' : 'right' })),
        cells,
      ),
    );
    if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(rows, null, 2)}\n`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
