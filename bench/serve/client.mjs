/** One streamed completion over HTTP, and when its tokens came. */
import { connect } from 'node:net';

/**
 * Asks for a completion and reads it to its end. Times are of performance.now(). Reads the socket itself: Node's HTTP client
 * takes as long for a token as a server does, and on a machine whose every core computes that would count as the server's.
 * @param {{ onFirst?: () => void, signal?: AbortSignal }} [options] `onFirst` is called when the first token comes.
 * @returns {Promise<{ sent: number, first: number, last: number, tokens: number }>}
 */
export function complete(url, body, { onFirst, signal } = {}) {
  const payload = JSON.stringify({ ignore_eos: true, ...body, stream: true, stream_options: { include_usage: true } });
  const { host, hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const sent = performance.now();
    let first = 0;
    let last = 0;
    let tail = Buffer.alloc(0);
    const callback = (length, buffer) => {
      const fresh = buffer.subarray(0, length);
      // The end of the stream holds the usage, and no more than that is kept.
      tail = Buffer.concat([tail.subarray(-1000), fresh]);
      if (!fresh.includes('"choices":[{')) return;
      last = performance.now();
      if (first !== 0) return;
      first = last;
      onFirst?.();
    };
    const socket = connect({ host: hostname, port, signal, onread: { buffer: Buffer.alloc(65536), callback } });
    socket.on('error', reject);
    socket.on('close', () => {
      const text = tail.toString();
      const tokens = Number(/"completion_tokens":(\d+)/.exec(text)?.[1]);
      if (text.includes('data: [DONE]\n\n')) resolve({ sent, first, last, tokens });
      else reject(new Error(`not a whole answer: ${text}`));
    });
    const head = [
      'POST /v1/completions HTTP/1.1',
      `Host: ${host}`,
      'Content-Type: application/json',
      `Content-Length: ${Buffer.byteLength(payload)}`,
      'Connection: close',
    ];
    socket.write(`${head.join('\r\n')}\r\n\r\n${payload}`);
  });
}
