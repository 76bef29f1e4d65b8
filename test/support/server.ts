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

export async function startServer(options: ServerOptions & { kvTokens?: number } = {}): Promise<RunningServer> {
  const { kvTokens, ...rest } = options;
  const model = await Model.load(demoModel, { kvTokens });
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
