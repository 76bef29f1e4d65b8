// Decode and prefill speed of checkpoints, interleaved so that a noisy machine is fair to all of them.
// node bench/model.mjs MODEL[@WEIGHTS]... [--tokens 64] [--rounds 5] [--prompt 256] [--threads 0]
import { basename } from 'node:path';
import { parseArgs } from 'node:util';
import { Model } from '../dist/runtime/model.js';
import { parseWeights } from '../dist/runtime/weights.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '64' },
    rounds: { type: 'string', default: '5' },
    prompt: { type: 'string', default: '256' },
    threads: { type: 'string', default: '0' },
  },
});
const [tokens, rounds, promptLength] = [values.tokens, values.rounds, values.prompt].map(Number);
const median = (list) => list.toSorted((a, b) => a - b)[list.length >> 1];

const models = [];
for (const given of positionals) {
  // MODEL, or MODEL@weights
  const [path, weights = 'source'] = given.split('@');
  const start = performance.now();
  const model = await Model.load(path, { threads: Number(values.threads), weights: parseWeights(weights) });
  models.push({ path: given, model, load: (performance.now() - start) / 1000, decode: [], prefill: [] });
}
const prompt = Array.from({ length: promptLength }, (_, i) => (i * 7919) % 4000);
for (let round = 0; round < rounds; round++) {
  for (const { model, decode, prefill } of models) {
    const start = performance.now();
    let first;
    for await (const _ of model.generate(prompt, { maxTokens: tokens + 1, ignoreEos: true }))
      first ??= performance.now();
    prefill.push(promptLength / ((first - start) / 1000));
    decode.push(tokens / ((performance.now() - first) / 1000));
  }
}
const base = median(models[0].decode);
console.table(
  models.map(({ path, model, load, decode, prefill }) => ({
    model: basename(path),
    formats: model.info.formats.join(', '),
    'load s': +load.toFixed(1),
    'MB / token': +(model.info.activeBytes / 1e6).toFixed(0),
    'prefill tok/s': +median(prefill).toFixed(0),
    'decode tok/s': +median(decode).toFixed(1),
    'GB/s': +((median(decode) * model.info.activeBytes) / 1e9).toFixed(1),
    '× first': +(median(decode) / base).toFixed(2),
  })),
);
