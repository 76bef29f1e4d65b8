// Prunes a model to 2:4 on a text and lets the result write:
//   node examples/prune-and-generate.mjs MODEL TEXT OUTPUT [PROMPT]
import { Model, prune } from 'espalier';

const [model, calibration, output, prompt = 'The people'] = process.argv.slice(2);
if (output === undefined) {
  console.error('usage: node examples/prune-and-generate.mjs MODEL TEXT OUTPUT [PROMPT]');
  process.exit(2);
}

const { sparsity, warnings } = await prune({
  model,
  output,
  calibration,
  method: 'sparsegpt',
  routerWeighting: true,
  pattern: '2:4',
  samples: 32,
  sequenceLength: 512,
  save: 'sparse',
  onProgress(progress) {
    if (progress.type === 'layer') console.error(`layer ${progress.report.layer} done`);
  },
});
for (const warning of warnings) console.error(warning);
console.error(`${(sparsity * 100).toFixed(1)} % of the expert weights are zero`);

const pruned = await Model.load(output);
for await (const { text } of pruned.generate(prompt, { maxTokens: 64 })) process.stdout.write(text);
process.stdout.write('\n');
pruned.dispose();
