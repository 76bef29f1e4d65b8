/** An OpenAI-compatible server over a loaded model, as a Fastify instance. */
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
import { HttpError, handleError } from './errors.ts';
import { ApiKeys } from './keys.ts';
import { Metrics } from './metrics.ts';
import { chatRoutes } from './routes/chat.ts';
import { completionRoutes } from './routes/completions.ts';
import { modelRoutes } from './routes/model.ts';
import { statusRoutes } from './routes/status.ts';
import type { App, Service } from './service.ts';

export interface ServerOptions {
  /** What requests call the model. @default the name of its folder */
  modelName?: string | undefined;
  /** Keys, one of which every route but /health then asks for. @default none: everyone may ask */
  apiKeys?: readonly string[] | undefined;
  /** Requests taken on at a time, running and waiting; more are refused with 503. @default 256 */
  maxRequests?: number | undefined;
  /** Bytes of a request's body. @default 2 MiB */
  bodyLimit?: number | undefined;
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

const headerTimeout = 10_000;
const bodyTimeout = 30_000;

/** @throws USAGE for options out of range */
export async function createServer(model: Model, options: ServerOptions = {}): Promise<EspalierServer> {
  const {
    modelName = basename(model.path),
    apiKeys = [],
    maxRequests = 256,
    bodyLimit = 2 * 2 ** 20,
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
    requestTimeout: bodyTimeout,
    http: { headersTimeout: headerTimeout },
    // Requests that run are drained, not cut.
    forceCloseConnections: 'idle',
    frameworkErrors: handleError,
  }).withTypeProvider<ZodTypeProvider>();
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.setErrorHandler(handleError);
  app.setNotFoundHandler((request, reply) => {
    handleError(new HttpError(404, `there is no ${request.method} ${request.url.slice(0, 200)}`), request, reply);
  });
  await app.register(swagger, {
    openapi: { info: { title: 'Espalier', description: 'OpenAI-compatible API', version } },
    transform: jsonSchemaTransform,
  });

  const keys = new ApiKeys(apiKeys);
  // Before the body is read.
  app.addHook('onRequest', async ({ url, headers }) => {
    if (url !== '/health') keys.check(headers.authorization);
  });
  const stop = new AbortController();
  const admission = new Admission(maxRequests);
  const service: Service = {
    model,
    modelName,
    admission,
    metrics: new Metrics(model, modelName),
    stopping: stop.signal,
  };
  chatRoutes(app, service);
  completionRoutes(app, service);
  modelRoutes(app, service);
  statusRoutes(app, service);
  app.get('/openapi.json', { schema: { hide: true } }, () => app.swagger());

  return Object.assign(app, {
    async drain(milliseconds: number) {
      const timer = setTimeout(() => stop.abort(new Error('the server is stopping')), milliseconds);
      await admission.drain();
      clearTimeout(timer);
      await app.close();
    },
  });
}
