/** GET /health, without a key, and GET /metrics. */
import type { App, Service } from '../service.ts';

export function statusRoutes(app: App, { admission, metrics }: Service): void {
  app.get('/health', async (_, reply) => {
    const status = admission.isDraining ? 'stopping' : 'ok';
    return reply.status(admission.isDraining ? 503 : 200).send({ status });
  });
  app.get('/metrics', async (_, reply) => reply.type(metrics.contentType).send(await metrics.text()));
}
