/** The form that a request wants its answers in. */
import { isEspalierError } from '../errors.ts';
import type { AnswerFormat } from '../grammar/format.ts';
import { HttpError } from './errors.ts';
import type { CommonRequest } from './schemas.ts';

export interface RequestedFormat {
  readonly format: AnswerFormat;
  /** Parameter that asked for it. */
  readonly param: string;
}

/** @throws HttpError 400 for two at once */
export function requestedFormat({ response_format, structured_outputs }: CommonRequest): RequestedFormat | undefined {
  const format = formatOf(response_format);
  if (structured_outputs == null) return format;
  if (format !== undefined) {
    const message = 'structured_outputs and response_format exclude each other';
    throw new HttpError(400, message, { param: 'structured_outputs' });
  }
  const wish: AnswerFormat =
    'regex' in structured_outputs
      ? { type: 'regex', pattern: structured_outputs.regex }
      : { type: 'grammar', grammar: structured_outputs.grammar };
  return { format: wish, param: 'structured_outputs' };
}

function formatOf(wish: CommonRequest['response_format']): RequestedFormat | undefined {
  if (wish == null || wish.type === 'text') return undefined;
  const param = 'response_format';
  if (wish.type === 'json_object') return { format: wish, param };
  const { schema, strict } = wish.json_schema;
  return { format: { type: 'json_schema', schema, strict: strict ?? false }, param };
}

/** What the library says of its option `format`, said of the parameter. */
export function renameFormat(error: unknown, param: string): unknown {
  if (!isEspalierError(error) || error.field !== 'format') return error;
  return new HttpError(400, error.message.replace(/^format\b/, param), { param, code: 'invalid_format' });
}
