/** What the routes of a server share. */
import type {
  FastifyBaseLogger,
  FastifyInstance,
  RawReplyDefaultExpression,
  RawRequestDefaultExpression,
  RawServerDefault,
} from 'fastify';
import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import type { Model } from '../runtime/model.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { Admission } from './admission.ts';
import { HttpError } from './errors.ts';
import type { Metrics } from './metrics.ts';

export interface Service {
  readonly model: Model;
  /** What requests call the model. */
  readonly modelName: string;
  /** Tokens of a prompt and its answer: what the model allows and the KV cache has room for. */
  readonly context: number;
  readonly admission: Admission;
  readonly metrics: Metrics;
  /** Milliseconds that a client may take to read on. */
  readonly stallTimeout: number;
  /** Fires when answers under way must end. */
  readonly stopping: AbortSignal;
}

export type App = FastifyInstance<
  RawServerDefault,
  RawRequestDefaultExpression,
  RawReplyDefaultExpression,
  FastifyBaseLogger,
  ZodTypeProvider
>;

/** @throws HttpError 400 naming `param`, which needs one, where the model has none */
export function requireTokenizer({ tokenizer }: Model, param?: string): Tokenizer {
  if (tokenizer !== undefined) return tokenizer;
  throw new HttpError(400, 'the model has no tokenizer.json: it takes and gives token ids', { param: param ?? null });
}
