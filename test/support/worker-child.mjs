// A process whose worker threads are ended in the middle of native work: node worker-child.mjs DIST MODEL SCRATCH.
// Prints one JSON line if it gets to its end.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

const kinds = ['load', 'step', 'prune'];
const prompt = [1, 2, 3, 4, 5, 6, 7, 8];

if (isMainThread) await supervise(...process.argv.slice(2));
else await work(workerData);

async function supervise(dist, path, scratch) {
  const { Model } = await import(dist);
  const model = await Model.load(path);
  const before = await idsOf(model);
  const ended = { load: 0, step: 0, prune: 0 };
  for (let round = 0; round < 21; round++) {
    const kind = kinds[round % kinds.length];
    const worker = new Worker(fileURLToPath(import.meta.url), {
      workerData: { dist, path, kind, output: join(scratch, `pruned-${round}`) },
    });
    await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
      worker.once('exit', () => reject(new Error('the worker ended by itself')));
    });
    await sleep((round * 7) % 40);
    worker.removeAllListeners('exit');
    await worker.terminate();
    ended[kind] += 1;
  }
  // What the workers shared with this thread (code, thread pool) is as it was.
  assert.deepEqual(await idsOf(model), before);
  model.dispose();
  console.log(JSON.stringify(ended));
}

async function idsOf(model) {
  const ids = [];
  for await (const piece of model.generate(prompt, { maxTokens: 12, ignoreEos: true })) ids.push(...piece.ids);
  return ids;
}

async function work({ dist, path, kind, output }) {
  const { Model, prune } = await import(dist);
  const begun = () => parentPort.postMessage('begun');
  if (kind === 'load') {
    for (;;) {
      const loading = Model.load(path);
      begun();
      (await loading).dispose();
    }
  }
  if (kind === 'step') {
    const model = await Model.load(path);
    // Some wait behind others, so that queued jobs end too.
    const endless = async () => {
      for (;;) {
        for await (const _ of model.generate(prompt, { maxTokens: 64, ignoreEos: true })) begun();
      }
    };
    await Promise.all([endless(), endless(), endless()]);
  }
  const calibration = [Uint32Array.from({ length: 16 * 256 }, (_, i) => (i * 7919) % 1000)];
  await prune({
    model: path,
    output,
    method: 'sparsegpt',
    calibration,
    samples: 16,
    sequenceLength: 256,
    onProgress: ({ type }) => type === 'stage' && begun(),
  });
}
