// Compares models on a text, each loaded once:
//   node examples/perplexity.mjs TEXT MODEL...
import { readFile } from 'node:fs/promises';
import { Model, perplexity } from 'espalier';

const [file, ...models] = process.argv.slice(2);
if (models.length === 0) {
  console.error('usage: node examples/perplexity.mjs TEXT MODEL...');
  process.exit(2);
}

const text = await readFile(file, 'utf8');
for (const path of models) {
  const model = await Model.load(path);
  const { perplexity: value, windows } = await perplexity({ model, data: { text }, sequenceLength: 512 });
  console.log(
    `${value.toFixed(3)}  ${path} (${windows} windows, ${(model.info.weightBytes / 1e6).toFixed(1)} MB of weights)`,
  );
  model.dispose();
}
