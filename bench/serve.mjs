// The server under load, over the loopback interface: node bench/serve.mjs MODEL [--activations bf16] [--weights int4]
//   [--kv-cache bf16] [--tokens 64] [--rounds 4] [--probes 100] [--seed N] [--json FILE]
// The server has a process of its own (bench/serve/host.mjs); this one asks it. Prompts are random token ids, answers are
// drawn at temperature 1 and never end early. MODEL needs a tokenizer.json; one of bench/make-model.mjs takes that of
// models/demo. All figures are of one run; configurations that are compared take turns.
import { setMaxListeners } from 'node:events';
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { formatTable } from '../dist/report/table.js';
import { parseWeights } from '../dist/runtime/weights.js';
import { complete } from './serve/client.mjs';
import { startHost } from './serve/start-host.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    activations: { type: 'string', default: 'float32' },
    weights: { type: 'string', default: 'source' },
    'kv-cache': { type: 'string', default: 'float32' },
    tokens: { type: 'string', default: '64' },
    rounds: { type: 'string', default: '4' },
    probes: { type: 'string', default: '100' },
    seed: { type: 'string', default: String(Date.now() % 1e9) },
    json: { type: 'string' },
  },
});
const [path] = positionals;
const [tokens, rounds, probes, seed] = [values.tokens, values.rounds, values.probes, values.seed].map(Number);

let state = seed >>> 0;
/** Random token ids (Weyl sequence, mixed); no two prompts begin alike. */
function randomTokens(count) {
  return Array.from({ length: count }, () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return (mixed >>> 16) % host.vocabulary;
  });
}

const sorted = (numbers) => numbers.toSorted((a, b) => a - b);
const median = (numbers) => sorted(numbers)[Math.floor(numbers.length / 2)];
/** The smallest number that `share` of them do not exceed. */
const quantile = (numbers, share) => sorted(numbers)[Math.ceil(numbers.length * share) - 1];

const ask = (prompt, maxTokens, options) =>
  complete(host.url, { model: 'model', prompt, max_tokens: maxTokens }, options);
/** Milliseconds to the first token of a prompt that asks for no more. */
const timeToFirst = async (prompt) => {
  const { sent, first } = await ask(prompt, 1);
  return first - sent;
};
const rate = ({ first, last, tokens: count }) => ((count - 1) * 1000) / (last - first);

/** Tokens a second of so many streams together. */
async function decode(streams) {
  const all = await Promise.all(Array.from({ length: streams }, () => ask(randomTokens(32), tokens)));
  return all.reduce((sum, one) => sum + rate(one), 0);
}

/** Does `work` while so many streams decode; one that ends is followed by the next. */
async function beside(streams, work) {
  const control = new AbortController();
  const { signal } = control;
  setMaxListeners(0, signal);
  const started = [];
  const runs = Array.from({ length: streams }, async () => {
    let onFirst;
    started.push(
      new Promise((resolve) => {
        onFirst = resolve;
      }),
    );
    while (!signal.aborted) {
      await ask(randomTokens(32), host.context - 32, { onFirst, signal }).catch((error) => {
        if (!signal.aborted) throw error;
      });
    }
  });
  await Promise.all(started);
  const result = await work();
  control.abort();
  await Promise.all(runs);
  return result;
}

async function timesToFirst(count, length) {
  const times = [];
  for (let i = 0; i < count; i++) times.push(await timeToFirst(randomTokens(length)));
  return times;
}

/** Batch sizes, the library and the server take turns. */
async function measureDecode(report) {
  const rates = Object.fromEntries(streamCounts.map((count) => [count, []]));
  const alone = [];
  for (let round = 0; round < rounds; round++) {
    for (const count of streamCounts) rates[count].push(await decode(count));
    alone.push(await host.ask('generate', { prompt: randomTokens(32), maxTokens: tokens }));
  }
  report.decode = Object.fromEntries(streamCounts.map((count) => [count, median(rates[count])]));
  report.library = median(alone);
}

async function measureFirst(report) {
  const alone = await timesToFirst(probes, 128);
  const loaded = await beside(15, () => timesToFirst(probes, 128));
  const figures = (times) => ({ p50: quantile(times, 0.5), p99: quantile(times, 0.99) });
  report.first = { alone: figures(alone), loaded: figures(loaded) };
}

async function measurePrefix(report) {
  const cold = [];
  const warm = [];
  for (let round = 0; round < rounds; round++) {
    const shared = randomTokens(1024);
    cold.push(await timeToFirst([...shared, ...randomTokens(32)]));
    warm.push(await timeToFirst([...shared, ...randomTokens(32)]));
  }
  report.prefix = { cold: median(cold), warm: median(warm) };
}

/** As many streams as the server takes on, five seconds long. */
async function measureDelay(report) {
  report.delay = await beside(fullLoad, async () => {
    await host.ask('resetDelay');
    await new Promise((resolve) => setTimeout(resolve, 5000));
    return host.ask('delay');
  });
}

/** A client that went away is noticed within a step. */
async function allBlocksFree() {
  const end = performance.now() + 5000;
  for (;;) {
    const { freeBlocks, blocks } = await host.ask('state');
    if (freeBlocks === blocks) return;
    if (performance.now() > end) throw new Error(`${blocks - freeBlocks} blocks of the KV cache were not given back`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function tableOf({ decode: rates, library, first, prefix, delay }) {
  const one = rates[1];
  const ms = (value) => `${value.toFixed(1)} ms`;
  const perSecond = (value) => `${value.toFixed(value < 100 ? 1 : 0)} tok/s`;
  const rows = streamCounts.map((count) => [
    `decode, ${count} streams`,
    perSecond(rates[count]),
    `${(rates[count] / one).toFixed(2)} × one`,
    count === 16 ? '≥ 3.5' : '',
  ]);
  rows.push(
    [
      'decode, Model.generate alone',
      perSecond(library),
      `server ${((1 - one / library) * 100).toFixed(1)} % slower`,
      '≤ 5 %',
    ],
    ['first token of 128, alone, p50 and p99', `${ms(first.alone.p50)}, ${ms(first.alone.p99)}`, '', ''],
    [
      'first token of 128 beside 15, p50 and p99',
      `${ms(first.loaded.p50)}, ${ms(first.loaded.p99)}`,
      `p99 ${(first.loaded.p99 / first.alone.p99).toFixed(2)} × alone`,
      '≤ 3',
    ],
    ['first token of 1056, cold', ms(prefix.cold), '', ''],
    [
      'first token of 1056, 1024 of them known',
      ms(prefix.warm),
      `${(prefix.warm / prefix.cold).toFixed(3)} × cold`,
      '≤ 0.15',
    ],
    [
      `event-loop delay, ${fullLoad} streams, p50, p99, most`,
      [delay.p50, delay.p99, delay.max].map(ms).join(', '),
      '',
      'p99 < 20 ms',
    ],
  );
  return formatTable([{ title: 'what' }, { title: 'found' }, { title: 'ratio' }, { title: 'wanted' }], rows);
}

const streamCounts = [1, 4, 16];
/** The server's default limit. */
const fullLoad = 256;
const load = {
  activations: values.activations,
  weights: parseWeights(values.weights),
  kvCache: values['kv-cache'],
  kvTokens: 65_536,
};
const host = await startHost({ path, load });
try {
  await decode(16);
  const report = { model: path, ...load, formats: host.formats, seed, tokens, rounds, probes };
  for (const measure of [measureDecode, measureFirst, measurePrefix, measureDelay]) await measure(report);
  await allBlocksFree();
  console.log(`${path}: experts ${host.formats.join(', ')}, activations ${load.activations}, seed ${seed}`);
  console.log(tableOf(report));
  if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`);
} finally {
  await host.stop();
}
