/** GET /health, without a key, and GET /metrics. */
import type { App, Service } from '../service.ts';

/** What asks every second does not fill the log. */
const quiet = { logLevel: 'warn' } as const;

export function statusRoutes(app: App, { admission, metrics }: Service): void {
  app.get('/health', quiet, async (_, reply) => {
    const status = admission.isDraining ? 'stopping' : 'ok';
    return reply.status(admission.isDraining ? 503 : 200).send({ status });
  });
  app.get('/metrics', quiet, async (_, reply) => reply.type(metrics.contentType).send(await metrics.text()));
}
