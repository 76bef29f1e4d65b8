/** Errors as OpenAI's API gives them: `{error: {message, type, param, code}}`. */
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify';
import { hasZodFastifySchemaValidationErrors } from 'fastify-type-provider-zod';
import { EspalierError, errorCodes, isEspalierError } from '../errors.ts';

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

/** An answer other than 200 that a route decides on. */
export class HttpError extends Error {
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    message: string,
    { param = null, code = null, headers = {} }: Partial<Pick<HttpError, 'param' | 'code' | 'headers'>> = {},
  ) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
    this.headers = headers;
  }
}

/** What `prompt` and the like are called in requests. */
const paramOf: Partial<Record<string, string>> = {
  maxTokens: 'max_tokens',
  topK: 'top_k',
  topP: 'top_p',
  minP: 'min_p',
  repetitionPenalty: 'repetition_penalty',
  presencePenalty: 'presence_penalty',
  frequencyPenalty: 'frequency_penalty',
  logitBias: 'logit_bias',
};

/** Status and body for anything that was thrown. What is not the client's fault says no more than that. */
export function answerTo(error: unknown): {
  status: number;
  body: ErrorBody;
  headers: Readonly<Record<string, string>>;
} {
  if (error instanceof HttpError) {
    const { status, message, param, code, headers } = error;
    return { status, headers, body: bodyOf(status, message, param, code) };
  }
  if (isEspalierError(error)) {
    const status =
      error.code === 'ABORTED' || error.code === 'DISPOSED' ? 503 : errorCodes[error.code].exit === 2 ? 400 : 500;
    const param = error.field === undefined ? null : (paramOf[error.field] ?? error.field);
    const code = error.code === 'CONTEXT_FULL' ? contextExceeded : error.code.toLowerCase();
    if (status === 500) return { status, headers: {}, body: bodyOf(status, failed, null, 'engine_error') };
    return { status, headers: {}, body: bodyOf(status, error.message, param, code) };
  }
  if (hasZodFastifySchemaValidationErrors(error)) {
    const { instancePath, message, params } = error.validation[0]!;
    // Of a field that nobody knows the path ends before its name.
    const [unknown = ''] = (params as { keys?: string[] }).keys ?? [];
    const param = [...instancePath.split('/'), unknown].filter(Boolean).join('.');
    return { status: 400, headers: {}, body: bodyOf(400, `${param || 'the body'}: ${message}`, param || null, null) };
  }
  const { statusCode = 500, message, code } = error as FastifyError;
  if (statusCode < 500)
    return { status: statusCode, headers: {}, body: bodyOf(statusCode, message, null, code ?? null) };
  return { status: 500, headers: {}, body: bodyOf(500, failed, null, null) };
}

/** OpenAI's word for it. */
export const contextExceeded = 'context_length_exceeded';
const failed = 'the server failed to answer';

function bodyOf(status: number, message: string, param: string | null, code: string | null): ErrorBody {
  const type = status === 401 ? 'authentication_error' : status >= 500 ? 'server_error' : 'invalid_request_error';
  return { error: { message, type, param, code } };
}

export function handleError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const { status, body, headers } = answerTo(error);
  // Nobody is told of what a client left behind, nor of refusals: the log has their status, and a burst has many.
  if (status >= 500 && !(error instanceof HttpError) && !reply.raw.destroyed)
    request.log.error({ err: error }, 'request failed');
  void reply.status(status).headers(headers).send(body);
}

/** @throws HttpError 404 in OpenAI's words unless the request names the model that is served */
export function requireModel(requested: string, served: string): void {
  if (requested === served) return;
  throw new HttpError(
    404,
    `the model ${JSON.stringify(requested.slice(0, 200))} does not exist; this server has ${served}`,
    {
      param: 'model',
      code: 'model_not_found',
    },
  );
}

/** The error of a stream that had begun. */
export function streamError(error: unknown): ErrorBody {
  return answerTo(error instanceof EspalierError || error instanceof HttpError ? error : new Error('failed')).body;
}
