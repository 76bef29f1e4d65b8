// Loads, runs and disposes a model again and again: node --expose-gc memory-child.mjs DIST MODEL. Prints the resident
// bytes after each round as JSON.
import { setImmediate as tick } from 'node:timers/promises';

const [dist, path] = process.argv.slice(2);
const { Model } = await import(dist);

const rounds = [];
for (let round = 0; round < 50; round++) {
  const model = await Model.load(path);
  for await (const _ of model.generate([1, 2, 3, 4], { maxTokens: 4, ignoreEos: true }));
  // Every other one is left to the garbage collector.
  if (round % 2 === 0) model.dispose();
  await tick();
  globalThis.gc();
  await tick();
  rounds.push(process.memoryUsage.rss());
}
console.log(JSON.stringify(rounds));
