/** One streamed completion over HTTP, and when its tokens came. */
import { Agent, request } from 'node:http';

const agent = new Agent({ keepAlive: true, maxSockets: Infinity });

/**
 * Asks for a completion and reads it to its end. Times are of performance.now().
 * @param {{ onFirst?: () => void, signal?: AbortSignal }} [options] `onFirst` is called when the first token comes.
 * @returns {Promise<{ sent: number, first: number, last: number, tokens: number }>}
 */
export function complete(url, body, { onFirst, signal } = {}) {
  const payload = JSON.stringify({ ignore_eos: true, ...body, stream: true, stream_options: { include_usage: true } });
  return new Promise((resolve, reject) => {
    const sent = performance.now();
    const asked = request(`${url}/v1/completions`, {
      method: 'POST',
      agent,
      signal,
      headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) },
    });
    asked.on('error', reject);
    asked.on('response', (response) => {
      let first = 0;
      let last = 0;
      let tail = '';
      response.setEncoding('utf8');
      response.on('error', reject);
      response.on('data', (text) => {
        // The end of the stream holds the usage, and no more than that is kept.
        tail = (tail + text).slice(-1000);
        if (!text.includes('"choices":[{')) return;
        last = performance.now();
        if (first !== 0) return;
        first = last;
        onFirst?.();
      });
      response.on('end', () => {
        const tokens = Number(/"completion_tokens":(\d+)/.exec(tail)?.[1]);
        if (tail.endsWith('data: [DONE]\n\n')) resolve({ sent, first, last, tokens });
        else reject(new Error(`status ${response.statusCode}: ${tail}`));
      });
    });
    asked.end(payload);
  });
}
