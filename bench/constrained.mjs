// What holding answers to a form costs: node bench/constrained.mjs MODEL [--tokens 200] [--rounds 5] [--streams 1,16]
//   [--weights int4]. Tokens a second of answers with and without a form, which take turns, and how long a schema takes to be
// read. The first form allows any text: its answers are those without a form, token for token, which is checked.
import { parseArgs } from 'node:util';
import { Model } from '../dist/index.js';
import { formatTable } from '../dist/report/table.js';
import { parseWeights } from '../dist/runtime/weights.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '200' },
    rounds: { type: 'string', default: '5' },
    streams: { type: 'string', default: '1,16' },
    weights: { type: 'string', default: 'source' },
  },
});
const [tokens, rounds] = [values.tokens, values.rounds].map(Number);
const streamCounts = values.streams.split(',').map(Number);
const model = await Model.load(positionals[0], { weights: parseWeights(values.weights) });
const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

/** A list of objects with so many members of each kind, long enough never to end. */
const schemaWith = (name) => ({
  type: 'object',
  properties: {
    [name]: {
      type: 'array',
      minItems: 200,
      items: {
        type: 'object',
        properties: {
          kind: { enum: ['tree', 'wall', 'river'] },
          height: { type: 'integer', minimum: 0, maximum: 999 },
          text: { type: 'string', minLength: 8, maxLength: 40 },
          isOld: { type: 'boolean' },
        },
        required: ['kind', 'height', 'text', 'isOld'],
        additionalProperties: false,
      },
    },
  },
  required: [name],
  additionalProperties: false,
});

const formats = {
  none: undefined,
  'regex, any text': { type: 'regex', pattern: '(.|\\n)*' },
  'regex, letters': { type: 'regex', pattern: '[a-z ,.]{1,20000}' },
  json_schema: { type: 'json_schema', schema: schemaWith('list') },
  json_object: { type: 'json_object' },
};
const ends = Object.fromEntries(model.spec.eosTokenIds.map((id) => [id, -100]));

async function answer(format, seed) {
  let first = 0;
  const ids = [];
  const options = { maxTokens: tokens, temperature: 1, seed, logitBias: ends, format };
  for await (const piece of model.generate('The old town', options)) {
    first ||= performance.now();
    ids.push(...piece.ids);
  }
  return { ids, rate: ((ids.length - 1) * 1000) / (performance.now() - first) };
}

const rows = [];
for (const streams of streamCounts) {
  const rates = Object.fromEntries(Object.keys(formats).map((name) => [name, []]));
  for (let round = -1; round < rounds; round++) {
    const texts = {};
    for (const [name, format] of Object.entries(formats)) {
      const answers = await Promise.all(
        Array.from({ length: streams }, (_, i) => answer(format, 100 * round + i + 200)),
      );
      texts[name] = answers.map(({ ids }) => ids.join()).join(';');
      // The first round warms up.
      if (round >= 0) rates[name].push(answers.reduce((sum, { rate }) => sum + rate, 0));
    }
    if (texts.none !== texts['regex, any text'])
      console.log('note: an answer held to any text differs from one that is not');
  }
  const base = median(rates.none);
  for (const [name, list] of Object.entries(rates)) {
    const rate = median(list);
    const cost = (streams * 1000) / rate - (streams * 1000) / base;
    rows.push([`${streams}`, name, `${rate.toFixed(0)} tok/s`, (rate / base).toFixed(3), `${cost.toFixed(3)} ms`]);
  }
}
console.log(
  formatTable(
    [{ title: 'streams' }, { title: 'form' }, { title: 'decode' }, { title: 'of none' }, { title: 'more, a step' }],
    rows,
  ),
);

async function timeToStart(format) {
  const begun = performance.now();
  const matcher = await model.grammars.start(format);
  const milliseconds = performance.now() - begun;
  matcher.end();
  return milliseconds;
}
const own = await Model.load(positionals[0]);
const begun = performance.now();
(await own.grammars.start(formats.json_schema)).end();
const cold = performance.now() - begun;
own.dispose();
const fresh = [];
const again = [];
for (let i = 0; i < 9; i++) {
  const format = { type: 'json_schema', schema: schemaWith(`list${i}`) };
  fresh.push(await timeToStart(format));
  again.push(await timeToStart(format));
}
const ms = (number) => `${number.toFixed(1)} ms`;
console.log(
  `a schema, until the first mask may be asked for: ${ms(cold)} with the threads to start, ${ms(median(fresh))} new, ${ms(median(again))} known`,
);
model.dispose();
