/** Answers to what reaches no route: requests that are no HTTP, come too slowly, or ask for what is not there. */
import type { Socket } from 'node:net';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { answerTo, HttpError, handleError } from './errors.ts';

/** What Node says of a connection before there is a request. */
export function refuseConnection(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const refusal =
    error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
      ? new HttpError(408, 'the request came too slowly')
      : error.code === 'HPE_HEADER_OVERFLOW'
        ? new HttpError(431, 'the headers of the request are too long')
        : new HttpError(400, 'the request is not HTTP');
  const body = JSON.stringify(answerTo(refusal).body);
  const head = [
    `HTTP/1.1 ${refusal.status} ${reasons[refusal.status]}`,
    'content-type: application/json; charset=utf-8',
    `content-length: ${Buffer.byteLength(body)}`,
    'connection: close',
  ];
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`, () => socket.destroy());
}

const reasons: Record<number, string> = {
  400: 'Bad Request',
  408: 'Request Timeout',
  431: 'Request Header Fields Too Large',
};

/** 405 with the methods of a path that is known, 404 for others. To be called before routes are added. */
export function refuseUnknown(app: FastifyInstance): void {
  const methods = new Map<string, Set<string>>();
  app.addHook('onRoute', ({ url, method }) => {
    const known = methods.get(url) ?? new Set();
    for (const each of [method].flat()) known.add(each);
    methods.set(url, known);
  });
  app.setNotFoundHandler((request: FastifyRequest, reply: FastifyReply) => {
    const [path = ''] = request.url.split('?');
    const known = [...methods].find(([url]) => isOf(url, path))?.[1];
    const shown = `${request.method} ${path.slice(0, 200)}`;
    if (known === undefined) return handleError(new HttpError(404, `there is no ${shown}`), request, reply);
    const allow = [...known].join(', ');
    const refusal = new HttpError(405, `there is no ${shown}, only ${allow}`, { headers: { allow } });
    return handleError(refusal, request, reply);
  });
}

/** Whether a path is one of a route such as `/v1/models/:id`. */
function isOf(route: string, path: string): boolean {
  const [wanted, found] = [route.split('/'), path.split('/')];
  return wanted.length === found.length && wanted.every((part, i) => part.startsWith(':') || part === found[i]);
}

/** A body is taken as it is: what it would unpack to is not known before it is unpacked. @throws HttpError 415 */
export function requirePlainBody({ headers }: FastifyRequest): void {
  const encoding = headers['content-encoding'];
  if (encoding === undefined || encoding.toLowerCase() === 'identity') return;
  throw new HttpError(415, `bodies are not unpacked; found content-encoding ${encoding.slice(0, 40)}`);
}
