/** The process that is measured: a server on a model, and what only its own process can know. Driven over IPC. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Model } from '../../dist/index.js';
import { createServer } from '../../dist/server/index.js';

const { path, load, server } = JSON.parse(process.argv[2]);
const model = await Model.load(path, load);
const app = await createServer(model, { ...server, modelName: 'model' });
const url = await app.listen({ host: '127.0.0.1', port: 0 });
const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();

const accepted = new WeakMap();
const refusals = [];
app.server.on('connection', (socket) => accepted.set(socket, performance.now()));
app.server.prependListener('request', ({ socket }, response) => {
  const begun = performance.now();
  response.once('finish', () => {
    if (response.statusCode !== 503) return;
    const end = performance.now();
    refusals.push({ connection: end - accepted.get(socket), head: end - begun });
  });
});

const commands = {
  /** Milliseconds to the end of each refusal since the last call: from its connection, and from the head of its request. */
  refusals: () => refusals.splice(0),
  /** Tokens per second of the library without a server, from the first token to the last. */
  async generate({ prompt, maxTokens }) {
    let first = 0;
    let tokens = 0;
    for await (const { ids } of model.generate(prompt, { maxTokens, temperature: 1, ignoreEos: true })) {
      first ||= performance.now();
      tokens += ids.length;
    }
    return ((tokens - 1) * 1000) / (performance.now() - first);
  },
  resetDelay: () => delay.reset(),
  /** Milliseconds; the timer that measures comes around every one of them. */
  delay: () => ({ p50: delay.percentile(50) / 1e6, p99: delay.percentile(99) / 1e6, max: delay.max / 1e6 }),
  state: () => ({ rss: process.memoryUsage.rss(), freeBlocks: model.kv.free, blocks: model.kv.size }),
  /** Resident bytes without the garbage of JavaScript, which is collected when the process likes. */
  async resident() {
    for (let i = 0; i < 2; i++) {
      globalThis.gc();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return process.memoryUsage.rss();
  },
};

process.on('message', async ({ id, name, args }) => {
  try {
    process.send({ id, value: await commands[name](args) });
  } catch (error) {
    process.send({ id, error: String(error) });
  }
});
process.on('SIGTERM', async () => {
  await app.drain(5000);
  model.dispose();
  process.disconnect();
});
process.send({
  url,
  vocabulary: model.spec.vocabularySize,
  context: model.spec.maxPositions,
  formats: model.info.formats,
});
