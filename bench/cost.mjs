// Time and peak memory of pruning, a row for each recipe, and what --dry-run foresees: node bench/cost.mjs MODEL RECIPE...
//   [--calibration FILE] [--samples 32] [--sequence-length 512] [--memory GiB] [--threads 0]
// RECIPE is a file, or JSON such as '[{"weights": {"method": "wanda"}}]'. Calibration is MODEL/golden-calibration.u16 unless
// given, and random token ids for a model that has none (bench/make-model.mjs). Every row runs in a process of its own; what it
// writes goes to a temporary folder (TMPDIR), where the model should lie too.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { dryRun, prune, readRecipe } from '../dist/index.js';
import { formatTable } from '../dist/report/table.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    calibration: { type: 'string' },
    samples: { type: 'string', default: '32' },
    'sequence-length': { type: 'string', default: '512' },
    memory: { type: 'string' },
    threads: { type: 'string', default: '0' },
    row: { type: 'boolean', default: false },
  },
});
const [model, ...recipes] = positionals;
const samples = Number(values.samples);
const sequenceLength = Number(values['sequence-length']);

function calibration() {
  const file = values.calibration ?? join(model, 'golden-calibration.u16');
  if (existsSync(file)) return file;
  const { vocab_size: vocabulary } = JSON.parse(readFileSync(join(model, 'config.json'), 'utf8'));
  return Uint32Array.from({ length: samples * sequenceLength }, () => Math.floor(Math.random() * vocabulary));
}

async function run(recipe, folder) {
  const file = existsSync(recipe) ? recipe : join(folder, 'recipe.json');
  if (file !== recipe) writeFileSync(file, recipe);
  const options = {
    ...readRecipe(file),
    ...{ model, samples, sequenceLength, output: join(folder, 'pruned'), calibration: calibration() },
    threads: Number(values.threads),
    memoryGiB: values.memory === undefined ? undefined : Number(values.memory),
  };
  const { memory } = await dryRun(options);
  const steps = {};
  let [step, since] = ['load', performance.now()];
  const start = since;
  const cpuBefore = process.cpuUsage();
  await prune({
    ...options,
    onProgress(event) {
      if (event.type !== 'stage' || event.stage === step) return;
      const now = performance.now();
      steps[step] = (steps[step] ?? 0) + (now - since) / 1000;
      [step, since] = [event.stage, now];
    },
  });
  const end = performance.now();
  steps[step] = (steps[step] ?? 0) + (end - since) / 1000;
  const { user, system } = process.cpuUsage(cpuBefore);
  const cpuSeconds = (user + system) / 1e6;
  return {
    seconds: (end - start) / 1000,
    cpuSeconds,
    steps,
    peak: process.resourceUsage().maxRSS * 1024,
    foreseen: memory.peak,
  };
}

const folder = mkdtempSync(join(tmpdir(), 'espalier-cost-'));
try {
  if (values.row) {
    console.log(JSON.stringify(await run(recipes[0], folder)));
  } else {
    const rows = recipes.map((recipe) => {
      const line = [fileURLToPath(import.meta.url), ...process.argv.slice(2).filter((arg) => !recipes.includes(arg))];
      const row = JSON.parse(execFileSync(process.execPath, [...line, recipe, '--row'], { encoding: 'utf8' }));
      const steps = Object.entries(row.steps).map(([name, seconds]) => `${name} ${seconds.toFixed(1)}`);
      console.error(`${recipe}: ${row.seconds.toFixed(1)} s (${steps.join(', ')}), ${(row.peak / 1e6).toFixed(0)} MB`);
      const [peak, foreseen] = [row.peak, row.foreseen].map((bytes) => (bytes / 1e6).toFixed(0));
      return [recipe, row.seconds.toFixed(1), row.cpuSeconds.toFixed(1), peak, foreseen];
    });
    const columns = ['recipe', 's', 'processor s', 'peak MB', 'foreseen MB'];
    console.log(
      formatTable(
        columns.map((title, i) => ({ title, align: i === 0 ? 'left' : 'right' })),
        rows,
      ),
    );
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
