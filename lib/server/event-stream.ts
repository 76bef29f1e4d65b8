/** Server-sent events to a client that may read slowly, or be gone. */
import { once } from 'node:events';
import type { FastifyReply } from 'fastify';

/** A client that takes nothing for so long is cut off; what it has not read lies in the socket's buffer, which is small. */
const STALL_MS = 30_000;

export class EventStream {
  readonly #reply: FastifyReply;

  /** Takes the reply over and sends its head. */
  constructor(reply: FastifyReply) {
    this.#reply = reply;
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
    const timer = setTimeout(() => raw.destroy(), STALL_MS);
    try {
      await Promise.race([once(raw, 'drain'), once(raw, 'close')]);
    } finally {
      clearTimeout(timer);
    }
  }

  end(): void {
    this.#reply.raw.end();
  }
}

/** Fires when the client goes away before it has its answer. */
export function goneSignal(reply: FastifyReply): AbortSignal {
  const control = new AbortController();
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) control.abort(new Error('the client went away'));
  });
  return control.signal;
}
