/** Requests that no client would send, byte by byte. */
import { once } from 'node:events';
import { connect } from 'node:net';

export interface RawAnswer {
  readonly status: number;
  readonly headers: string;
  readonly body: string;
  /** Milliseconds until the server closed the connection. */
  readonly milliseconds: number;
}

/**
 * Sends the parts one after the other, `pause` milliseconds apart, and reads until the server closes the connection. What it
 * sends after the first answer stays in `body`.
 */
export async function sendRaw(url: string, parts: Iterable<string | Buffer>, pause = 0): Promise<RawAnswer> {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  await once(socket, 'connect');
  const begun = performance.now();
  let text = '';
  socket.setEncoding('utf8').on('data', (data: string) => {
    text += data;
  });
  socket.on('error', () => {});
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  for (const part of parts) {
    if (!socket.writable) break;
    if (!socket.write(part)) await Promise.race([once(socket, 'drain').catch(() => {}), closed]);
    if (pause > 0) await Promise.race([new Promise((resolve) => setTimeout(resolve, pause)), closed]);
  }
  await closed;
  const end = text.indexOf('\r\n\r\n');
  return {
    status: Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1] ?? 0),
    headers: text.slice(0, end).toLowerCase(),
    body: text.slice(end + 4),
    milliseconds: performance.now() - begun,
  };
}

/** The head of a POST of JSON, with more lines. */
export function postHead(path: string, ...lines: string[]): string {
  return [`POST ${path} HTTP/1.1`, 'host: x', 'content-type: application/json', ...lines, '', ''].join('\r\n');
}
