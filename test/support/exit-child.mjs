// A process that exits in the middle of native work: node exit-child.mjs DIST MODEL SCRATCH load|step|prune.
import { join } from 'node:path';

const [dist, path, scratch, kind] = process.argv.slice(2);
const { Model, prune } = await import(dist);

function leave() {
  console.log('at work');
  setTimeout(() => process.exit(7), 15);
}

if (kind === 'load') {
  void Model.load(path);
  leave();
} else if (kind === 'step') {
  const model = await Model.load(path);
  const endless = async () => {
    for (;;) for await (const _ of model.generate([1, 2, 3], { maxTokens: 64, ignoreEos: true }));
  };
  for (let i = 0; i < 4; i++) void endless();
  leave();
} else {
  const calibration = [Uint32Array.from({ length: 16 * 256 }, (_, i) => (i * 7919) % 1000)];
  const sequences = { samples: 16, sequenceLength: 256 };
  let left = false;
  await prune({
    model: path,
    output: join(scratch, 'out'),
    method: 'sparsegpt',
    calibration,
    ...sequences,
    onProgress: ({ type }) => {
      if (type !== 'stage' || left) return;
      left = true;
      leave();
    },
  });
}
