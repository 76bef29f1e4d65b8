// Prunes and merges the experts of the small checkpoints in test/golden/families and writes beside each result what
// check_saved_models.py compares stock transformers with.
//
//   npm run build && node test/reference/save_pruned_experts.mjs FOLDER
//   python3 test/reference/check_saved_models.py FOLDER
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Model, prune } from '../../dist/index.js';
import { KvSequence } from '../../dist/runtime/kv-blocks.js';

const folder = process.argv[2];
if (folder === undefined) throw new Error('usage: node test/reference/save_pruned_experts.mjs FOLDER');
const families = fileURLToPath(new URL('../golden/families/', import.meta.url));
const ids = Array.from({ length: 40 }, (_, i) => (i * 37 + 11) % 128);
const calibration = Uint32Array.from({ length: 512 }, (_, i) => (i * i * 31 + i * 7) % 128);

/** Name → stages, and whether other runtimes can read the result. */
const recipes = {
  reap: [true, [{ experts: { method: 'reap', ratio: 0.5 } }]],
  naee: [true, [{ experts: { method: 'naee', ratio: 0.25 } }]],
  'stun-means': [true, [{ experts: { method: 'stun', keep: 2 } }]],
  'one-left': [true, [{ experts: { method: 'ean', keep: 1 } }]],
  repeat: [true, [{ experts: { method: 'm-smoe', ratio: 0.5, saveMerges: 'repeat' } }]],
  average: [true, [{ experts: { method: 'hc-smoe', ratio: 0.5, saveMerges: 'average' } }]],
  'reap-then-weights': [true, [{ experts: { method: 'reap', ratio: 0.5 } }, { weights: { pattern: '2:4' } }]],
  map: [false, [{ experts: { method: 'hc-smoe', ratio: 0.5 } }]],
  uneven: [undefined, [{ experts: { method: 'random', ratio: 0.4, scope: 'global' } }]],
};

for (const family of readdirSync(families).sort()) {
  for (const [name, [loads, stages]] of Object.entries(recipes)) {
    const output = join(folder, `${family}-${name}`);
    const { layers } = await prune({
      model: join(families, family),
      output,
      calibration,
      samples: 16,
      sequenceLength: 32,
      stages,
      overwrite: true,
    });
    const counts = new Set(layers.filter(({ experts }) => experts.length > 0).map(({ experts }) => experts.length));
    const expected = (loads ?? counts.size === 1) ? { ids, logits: await logitsOf(output) } : { refused: true };
    writeFileSync(join(output, 'expected.json'), JSON.stringify(expected));
  }
}

async function logitsOf(output) {
  const model = await Model.load(output);
  const cache = new KvSequence(model.kv);
  const { logits } = await model.step({
    tokens: Int32Array.from(ids),
    slices: [{ count: ids.length, position: 0, blocks: cache.table(ids.length) }],
    logits: Int32Array.from(ids, (_, row) => row),
    samples: [],
  });
  const width = model.spec.vocabularySize;
  model.dispose();
  return ids.map((_, row) => [...logits.slice(row * width, (row + 1) * width)]);
}
