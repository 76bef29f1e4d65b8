/** Server-sent events to a client that may read slowly, or be gone. */
import { once, setMaxListeners } from 'node:events';
import type { FastifyReply } from 'fastify';

export class EventStream {
  readonly #reply: FastifyReply;
  readonly #stallTimeout: number;
  readonly #ended: AbortSignal;

  /**
   * Takes the reply over and sends its head.
   * @param stallTimeout Milliseconds after which a client that reads nothing is cut off; what it has not read by then lies
   *   in the socket's buffer, which is small.
   * @param ended Once it fires, nobody waits for the client any more.
   */
  constructor(reply: FastifyReply, stallTimeout: number, ended: AbortSignal) {
    this.#reply = reply;
    this.#stallTimeout = stallTimeout;
    this.#ended = ended;
    reply.hijack();
    const headers = {
      ...reply.getHeaders(),
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
    };
    reply.raw.writeHead(200, headers as Record<string, string>);
  }

  /** Resolves when the client can take more. */
  async send(data: object | '[DONE]'): Promise<void> {
    const { raw } = this.#reply;
    if (raw.destroyed) return;
    if (raw.write(`data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`)) return;
    if (this.#ended.aborted) return;
    const timer = setTimeout(() => raw.destroy(), this.#stallTimeout);
    const control = new AbortController();
    const { signal } = control;
    const found = [
      once(raw, 'drain', { signal }),
      once(raw, 'close', { signal }),
      once(this.#ended, 'abort', { signal }),
    ];
    try {
      await Promise.race(found);
    } finally {
      clearTimeout(timer);
      control.abort();
    }
  }

  end(): void {
    this.#reply.raw.end();
  }
}

/** Fires when the client goes away before it has its answer, and when `stopping` does. */
export function endSignal(reply: FastifyReply, stopping: AbortSignal): AbortSignal {
  const control = new AbortController();
  // Every answer of the request listens.
  setMaxListeners(0, control.signal);
  const stop = () => control.abort(stopping.reason);
  stopping.addEventListener('abort', stop, { once: true });
  reply.raw.once('close', () => {
    stopping.removeEventListener('abort', stop);
    if (!reply.raw.writableFinished) control.abort(new Error('the client went away'));
  });
  if (stopping.aborted) stop();
  return control.signal;
}
