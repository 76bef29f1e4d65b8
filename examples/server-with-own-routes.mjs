// An OpenAI-compatible server with a route of one's own: PORT=8080 node examples/server-with-own-routes.mjs MODEL
import { Model } from 'espalier';
import { createServer } from 'espalier/server';

const model = await Model.load(process.argv[2] ?? 'models/demo');
const app = await createServer(model, { modelName: 'pruned', logger: { level: 'info' } });

app.get('/first-words', async ({ query }) => {
  let text = '';
  for await (const piece of model.generate(query.of ?? 'Once', { maxTokens: 12 })) text += piece.text;
  return { text };
});

await app.listen({ port: Number(process.env.PORT ?? 8080) });
process.once('SIGTERM', async () => {
  await app.drain(30_000);
  model.dispose();
});
