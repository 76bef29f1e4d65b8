// A server whose memory is watched: fork soak-child.mjs DIST MODEL with --expose-gc. Says its address; answers every
// message with its resident bytes and the blocks of its KV cache that are not free.
import { setTimeout as sleep } from 'node:timers/promises';

const [dist, path] = process.argv.slice(2);
const { Model } = await import(dist);
const { createServer } = await import(
  new URL('./server/index.js', dist.startsWith('/') ? `file://${dist}` : dist).href
);

const model = await Model.load(path, { kvTokens: 4096 });
const app = await createServer(model, { modelName: 'demo', maxRequests: 48 });
process.on('message', async () => {
  for (let i = 0; i < 3; i++) {
    globalThis.gc();
    await sleep(20);
  }
  process.send({ rss: process.memoryUsage.rss(), usedBlocks: model.kv.size - model.kv.free });
});
process.send(await app.listen({ host: '127.0.0.1', port: 0 }));
