// Espalier against llama.cpp on the same random Mixtral-type model, the contenders taking turns in one run.
// node compare.mjs WORK [--check] [--threads 2] [--rounds 5] [--tokens 64] [--seed N] [--json FILE]
// WORK holds the models (6 GB); those that are missing are made there. --check first compares what both engines compute.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { checkAgreement } from './check.mjs';
import { Contender } from './contender.mjs';
import { convertMixtral } from './mixtral-gguf.mjs';
import { othersSince } from './processors.mjs';
import { comparisonTable, contenderTable, summarise } from './report.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    check: { type: 'boolean', default: false },
    threads: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '5' },
    tokens: { type: 'string', default: '64' },
    seed: { type: 'string', default: String(Date.now() % 1e9) },
    json: { type: 'string' },
  },
});
const [work] = positionals;
const [threads, rounds, decoded, seed] = [values.threads, values.rounds, values.tokens, values.seed].map(Number);
if (work === undefined || ![threads, rounds, decoded].every((n) => Number.isInteger(n) && n > 0)) {
  console.error(
    'usage: node compare.mjs WORK [--check] [--threads 2] [--rounds 5] [--tokens 64] [--seed N] [--json FILE]',
  );
  process.exit(2);
}
/** Tokens of the prompt whose speed is measured, and of the one before decoding. */
const [longPrompt, shortPrompt] = [512, 32];
/** Of the models that bench/make-model.mjs makes, and of the one that the check runs. */
const vocabulary = 4096;
const demo = fileURLToPath(new URL('../../models/demo', import.meta.url));

let state = seed >>> 0;
/** Random token ids (Weyl sequence, mixed): the same for all contenders of a round. */
function randomTokens(count) {
  return Array.from({ length: count }, () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return (mixed >>> 16) % vocabulary;
  });
}

async function makeModels() {
  const models = { dense: [], half: ['--sparsity', '0.5'] };
  const paths = { dense: join(work, 'dense'), half: join(work, 'half') };
  for (const [name, options] of Object.entries(models)) {
    // Its config.json is the last file that make-model.mjs writes.
    if (existsSync(join(paths[name], 'config.json'))) continue;
    const script = fileURLToPath(new URL('../make-model.mjs', import.meta.url));
    execFileSync(process.execPath, [script, paths[name], ...options], { stdio: 'inherit' });
  }
  for (const type of ['BF16', 'Q4_0']) {
    paths[type] = join(work, `dense-${type.toLowerCase()}.gguf`);
    if (!existsSync(paths[type])) await convertMixtral(paths.dense, paths[type], type);
  }
  return paths;
}

mkdirSync(work, { recursive: true });
console.log(`${threads} threads on both sides, ${rounds} rounds, seed ${seed}\n`);
if (values.check) {
  const { lines, passed } = await checkAgreement({ model: demo, work, threads, prompt: randomTokens(64) });
  console.log(`${lines.join('\n')}\n`);
  if (!passed) process.exit(1);
}

const models = await makeModels();
const entrants = [
  { name: 'llama.cpp BF16', engine: 'llama', path: models.BF16 },
  { name: 'Espalier dense bf16', engine: 'espalier', path: models.dense, weights: 'source' },
  { name: 'Espalier 50 % bf16', engine: 'espalier', path: models.half, weights: 'source' },
  { name: 'llama.cpp Q4_0', engine: 'llama', path: models.Q4_0 },
  { name: 'Espalier dense int4', engine: 'espalier', path: models.dense, weights: 'int4' },
  { name: 'Espalier 50 % int4', engine: 'espalier', path: models.half, weights: 'int4' },
];
const contenders = [];
for (const { name, ...options } of entrants) {
  const contender = await Contender.start({ ...options, threads, context: 1024 });
  contenders.push({ name, contender, prefill: [], decode: [] });
}

const disturbances = [];
/** One contender's turn; the times of a round are kept together. */
async function takeTurn({ contender, prefill, decode }, { long, short, forced }) {
  const others = othersSince(contender);
  prefill.push(await contender.call('generate', long, []));
  decode.push((await contender.call('generate', short, forced)).slice(1));
  disturbances.push(others());
}
// A turn that does not count: memory is touched and buffers take their size.
const warmUp = { long: randomTokens(longPrompt), short: randomTokens(shortPrompt), forced: randomTokens(8) };
for (const { contender } of contenders) {
  await takeTurn({ contender, prefill: [], decode: [] }, warmUp);
}
disturbances.length = 0;
for (let round = 0; round < rounds; round++) {
  const tokens = { long: randomTokens(longPrompt), short: randomTokens(shortPrompt), forced: randomTokens(decoded) };
  for (const entry of contenders) await takeTurn(entry, tokens);
}
for (const { contender } of contenders) await contender.stop();

const rows = contenders.map((entry) => summarise(entry, longPrompt));
const { markdown, comparisons } = comparisonTable(rows);
console.log(`${contenderTable(rows)}\n\n${markdown}\n`);
const busiest = Math.max(...disturbances);
console.log(
  `Processors that anything else kept busy during a turn: ${mean(disturbances).toFixed(2)} on average, ` +
    `${busiest.toFixed(2)} at most.`,
);
if (values.json !== undefined) {
  const result = { threads, rounds, seed, contenders: rows, comparisons, otherProcessors: disturbances };
  writeFileSync(values.json, `${JSON.stringify(result, null, 2)}\n`);
}

function mean(list) {
  return list.reduce((sum, value) => sum + value, 0) / list.length;
}
