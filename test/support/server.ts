/** A server on the embedded model, listening on a free port of this machine. */
import OpenAI from 'openai';
import { Model } from '../../lib/index.ts';
import { createServer, type EspalierServer, type ServerOptions } from '../../lib/server/index.ts';
import { demoModel } from './models.ts';

export interface RunningServer extends AsyncDisposable {
  readonly model: Model;
  readonly app: EspalierServer;
  /** http://127.0.0.1:PORT */
  readonly url: string;
  readonly client: OpenAI;
}

export async function startServer(
  options: ServerOptions & { kvTokens?: number; chatTemplate?: string } = {},
): Promise<RunningServer> {
  const { kvTokens, chatTemplate, ...rest } = options;
  const model = await Model.load(demoModel, { kvTokens, chatTemplate });
  const app = await createServer(model, rest);
  const url = await app.listen({ host: '127.0.0.1', port: 0 });
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: options.apiKeys?.[0] ?? 'none', maxRetries: 0 });
  return {
    model,
    app,
    url,
    client,
    async [Symbol.asyncDispose]() {
      await app.close();
      model.dispose();
    },
  };
}

/** Resolves when `is` says yes, which is asked every few milliseconds; rejects after ten seconds. */
export async function until(is: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + 10_000;
  while (!(await is())) {
    if (performance.now() > end) throw new Error('it did not come to pass within ten seconds');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Tokens that a server has given so far, as its metrics count them. */
export async function generatedTokens(app: EspalierServer): Promise<number> {
  const { body } = await app.inject('/metrics');
  return Number(/^espalier_generation_tokens_total\{.*\} (\d+)$/m.exec(body)?.[1] ?? 0);
}

/** A stream that goes on while a test does what it does. */
export interface Bystander {
  /** Throws unless it has got what the library gives when nothing else runs. */
  check(): Promise<void>;
}

/** Streams over HTTP, an answer after the other, the same every time. */
export async function bystander(server: RunningServer): Promise<Bystander> {
  const prompt = 'The old town lay by the river';
  let wanted = '';
  for await (const { text } of server.model.generate(prompt, { maxTokens: 200, ignoreEos: true })) wanted += text;
  let isOver = false;
  let answers = 0;
  const run = async () => {
    while (!isOver) {
      const body = { model: 'demo', prompt, max_tokens: 200, temperature: 0, stream: true, ignore_eos: true };
      let found = '';
      for await (const chunk of await server.client.completions.create(body as typeof body & { stream: true })) {
        found += chunk.choices[0]!.text;
      }
      if (found !== wanted) throw new Error(`the stream beside the others got ${JSON.stringify(found)}`);
      answers++;
    }
  };
  const done = run();
  done.catch(() => {});
  await until(() => server.model.scheduler.load.running > 0);
  return {
    async check() {
      isOver = true;
      await done;
      if (answers === 0) throw new Error('the stream beside the others has not ended once');
    },
  };
}
