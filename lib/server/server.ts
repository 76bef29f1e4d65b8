/** An OpenAI-compatible server over a loaded model, as a Fastify instance. */
import { setMaxListeners } from 'node:events';
import { basename } from 'node:path';
import swagger from '@fastify/swagger';
import fastify, { type FastifyServerOptions } from 'fastify';
import {
  jsonSchemaTransform,
  serializerCompiler,
  validatorCompiler,
  type ZodTypeProvider,
} from 'fastify-type-provider-zod';
import { EspalierError } from '../errors.ts';
import type { Model } from '../runtime/model.ts';
import { version } from '../version.ts';
import { Admission } from './admission.ts';
import { handleError } from './errors.ts';
import { parseJsonBody } from './json-body.ts';
import { ApiKeys } from './keys.ts';
import { Metrics } from './metrics.ts';
import { refuseConnection, refuseUnknown, requirePlainBody } from './refusals.ts';
import { chatRoutes } from './routes/chat.ts';
import { completionRoutes } from './routes/completions.ts';
import { modelRoutes } from './routes/model.ts';
import { pagePaths, pageRoutes } from './routes/page.ts';
import { statusRoutes } from './routes/status.ts';
import type { App, Service } from './service.ts';

export interface ServerOptions {
  /** What requests call the model. @default the name of its folder */
  modelName?: string | undefined;
  /** Keys, one of which every route but /health and the page's files then asks for. @default none: everyone may ask */
  apiKeys?: readonly string[] | undefined;
  /** Requests taken on at a time, running and waiting; more are refused with 503. @default 256 */
  maxRequests?: number | undefined;
  /** Bytes of a request's body. @default 2 MiB */
  bodyLimit?: number | undefined;
  /** Milliseconds in which the headers of a request must come. @default 10 000 */
  headersTimeout?: number | undefined;
  /** Milliseconds in which a request must come whole. @default 30 000 */
  requestTimeout?: number | undefined;
  /** Milliseconds after which a client that does not read its stream is cut off. @default 30 000 */
  stallTimeout?: number | undefined;
  /** Answer `GET /` with a page to chat with the model and to watch the server. @default true */
  page?: boolean | undefined;
  /** Fastify's logger: options of pino, or a logger. @default none */
  logger?: FastifyServerOptions['logger'];
}

/** A Fastify instance: add routes to it, mount it, `listen`, or ask it with `inject`. */
export interface EspalierServer extends App {
  /**
   * Refuses new requests, lets those under way end for at most so many milliseconds, ends the others with an error, and
   * closes. The model is not disposed.
   */
  drain(milliseconds: number): Promise<void>;
}

/** Milliseconds that clients have to read the end of their answers. */
const lastWords = 1000;

/** Routes that take a slot. */
const answering = new Set<string | undefined>(['/v1/completions', '/v1/chat/completions']);

/** @throws USAGE for options out of range */
export async function createServer(model: Model, options: ServerOptions = {}): Promise<EspalierServer> {
  const {
    modelName = basename(model.path),
    apiKeys = [],
    maxRequests = 256,
    bodyLimit = 2 * 2 ** 20,
    headersTimeout = 10_000,
    requestTimeout = 30_000,
    stallTimeout = 30_000,
    page = true,
    logger,
  } = options;
  if (!Number.isInteger(maxRequests) || maxRequests < 1) {
    throw new EspalierError('USAGE', `maxRequests must be a positive integer; found ${maxRequests}`, {
      field: 'maxRequests',
    });
  }
  const app: App = fastify({
    bodyLimit,
    logger: logger ?? false,
    requestTimeout,
    http: { headersTimeout, connectionsCheckingInterval: Math.min(1000, headersTimeout) },
    clientErrorHandler: refuseConnection,
    // Requests that run are drained, not cut.
    forceCloseConnections: 'idle',
    frameworkErrors: handleError,
  }).withTypeProvider<ZodTypeProvider>();
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.setErrorHandler(handleError);
  app.removeContentTypeParser(['application/json', 'text/plain']);
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, async (_: unknown, body: Buffer) =>
    parseJsonBody(body),
  );
  refuseUnknown(app);
  await app.register(swagger, {
    openapi: { info: { title: 'Espalier', description: 'OpenAI-compatible API', version } },
    transform: jsonSchemaTransform,
  });

  const keys = new ApiKeys(apiKeys);
  const withoutKey = new Set<string | undefined>(page ? ['/health', ...pagePaths] : ['/health']);
  const admission = new Admission(maxRequests);
  // Before the body is read: a burst must not cost more than its refusal.
  app.addHook('onRequest', async (request) => {
    if (!withoutKey.has(request.routeOptions.url)) keys.check(request.raw.rawHeaders);
    requirePlainBody(request);
    if (answering.has(request.routeOptions.url)) admission.requireRoom();
  });
  const stop = new AbortController();
  // Every request listens.
  setMaxListeners(0, stop.signal);
  const service: Service = {
    model,
    modelName,
    context: Math.min(model.spec.maxPositions, model.kv.tokens),
    admission,
    metrics: new Metrics(model, modelName),
    stallTimeout,
    stopping: stop.signal,
  };
  chatRoutes(app, service);
  completionRoutes(app, service);
  modelRoutes(app, service);
  statusRoutes(app, service);
  if (page) pageRoutes(app);
  app.get('/openapi.json', { schema: { hide: true } }, () => app.swagger());

  return Object.assign(app, {
    async drain(milliseconds: number) {
      const timer = setTimeout(() => stop.abort(new Error('the server is stopping')), milliseconds);
      await admission.drain();
      clearTimeout(timer);
      // A client that does not read its last words does not hold up the end.
      const cut = setTimeout(() => app.server.closeAllConnections(), lastWords);
      await app.close();
      clearTimeout(cut);
    },
  });
}
