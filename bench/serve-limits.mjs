// The server at its limits, over the loopback interface: node bench/serve-limits.mjs MODEL [--streams 1000] [--limit 64]
//   [--soak 30] [--parts burst,stop,soak]. A burst of ten times as many requests as the server takes on, over new connections
// and over open ones; so many streams under way when SIGTERM comes; full load for so many seconds with clients that go away, and
// what memory does meanwhile.
import { request } from 'node:http';
import { connect } from 'node:net';
import { parseArgs } from 'node:util';
import { startHost } from './serve/start-host.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    streams: { type: 'string', default: '1000' },
    limit: { type: 'string', default: '64' },
    soak: { type: 'string', default: '30' },
    parts: { type: 'string', default: 'burst,stop,soak' },
  },
});
const [path] = positionals;
const [streams, limit, soakSeconds] = [values.streams, values.limit, values.soak].map(Number);
// A cache fills in time, which is not what is watched here.
const load = { kvTokens: 8192 };
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`;
const quantile = (numbers, share) => numbers.toSorted((a, b) => a - b)[Math.ceil(numbers.length * share) - 1];

/** Sends a completion; the answer's status and text, and when its head came. */
function send(url, body, { onHead, signal } = {}) {
  const payload = JSON.stringify({ model: 'model', prompt: [7, 8, 9], ignore_eos: true, ...body });
  const headers = { 'content-type': 'application/json', 'content-length': payload.length };
  return new Promise((resolve, reject) => {
    const sent = performance.now();
    const asked = request(`${url}/v1/completions`, { method: 'POST', agent: false, headers, signal });
    asked.on('error', reject);
    asked.on('response', async (response) => {
      const milliseconds = performance.now() - sent;
      onHead?.();
      let text = '';
      response.setEncoding('utf8').on('data', (part) => {
        text += part;
      });
      response.on('error', reject);
      response.on('end', () => resolve({ status: response.statusCode, milliseconds, text, headers: response.headers }));
    });
    asked.end(payload);
  });
}

/** Milliseconds. */
const spread = (times) => `${quantile(times, 0.5).toFixed(1)} ms (median), ${quantile(times, 1).toFixed(1)} ms (most)`;

async function burst() {
  const host = await startHost({ path, load, server: { maxRequests: limit } });
  await send(host.url, { max_tokens: 8 });
  const before = await host.ask('state');
  const answers = await Promise.all(Array.from({ length: 10 * limit }, () => send(host.url, { max_tokens: 200 })));
  const after = await host.ask('state');
  const refused = answers.filter(({ status, headers }) => status === 503 && headers['retry-after'] === '1');
  const answered = answers.filter(({ status }) => status === 200);
  const seen = await host.ask('refusals');
  console.log(
    `burst of ${answers.length}: ${answered.length} answered, ${refused.length} refused; resident ` +
      `${megabytes(before.rss)} before, ${megabytes(after.rss)} after. Refusals, for the client: ` +
      `${spread(refused.map(({ milliseconds }) => milliseconds))}; in the server from the connection: ` +
      `${spread(seen.map(({ connection }) => connection))}; from the head: ${spread(seen.map(({ head }) => head))}`,
  );
  const times = await burstOnOpen(host);
  console.log(`the same over open connections, from writing to the first byte of a refusal: ${spread(times)}`);
  await host.stop();
}

/** All connections are there before the first request is written, so that what is measured is the server. */
async function burstOnOpen({ url }) {
  const { hostname, port } = new URL(url);
  const body = JSON.stringify({ model: 'model', prompt: [7, 8, 9], ignore_eos: true, max_tokens: 200 });
  const head = ['POST /v1/completions HTTP/1.1', `host: ${hostname}`, 'content-type: application/json'];
  const text = `${[...head, `content-length: ${body.length}`, 'connection: close'].join('\r\n')}\r\n\r\n${body}`;
  const open = () =>
    new Promise((resolve, reject) => {
      const socket = connect(port, hostname, () => resolve(socket)).on('error', reject);
    });
  const sockets = await Promise.all(Array.from({ length: 10 * limit }, open));
  const answer = (socket) =>
    new Promise((resolve) => {
      const written = performance.now();
      socket.once('data', (data) => {
        resolve({ milliseconds: performance.now() - written, isRefusal: data.includes(' 503 ') });
        socket.resume();
      });
      socket.write(text);
    });
  const answers = await Promise.all(sockets.map(answer));
  return answers.filter(({ isRefusal }) => isRefusal).map(({ milliseconds }) => milliseconds);
}

async function stopWithStreams() {
  const host = await startHost({ path, load, server: { maxRequests: streams } });
  let begun = 0;
  const all = Array.from({ length: streams }, (_, i) => {
    // Every other one has little to say.
    const body = { prompt: [i % host.vocabulary, 7], max_tokens: i % 2 ? 24 : 1500, stream: true };
    return send(host.url, body, { onHead: () => begun++ });
  });
  // A quarter runs, the others wait for their turn.
  while (begun < streams / 4) await new Promise((resolve) => setTimeout(resolve, 5));
  const stopped = performance.now();
  const status = await host.stop();
  const seconds = ((performance.now() - stopped) / 1000).toFixed(1);
  const answers = await Promise.all(all);
  const waited = answers.filter(({ status: code }) => code === 503).length;
  const ends = answers.map(({ text }) => text.split('\n\n').at(-2) ?? '');
  const whole = ends.filter((end) => end === 'data: [DONE]').length;
  const errors = ends.filter((end) => end.startsWith('data: {"error"')).length;
  console.log(
    `SIGTERM with ${streams} streams: ${whole} whole, ${errors} with an error event, ${waited} with 503 ` +
      `before their first token, ${streams - whole - errors - waited} cut; status ${status} after ${seconds} s (5 s to end)`,
  );
}

async function soak() {
  const host = await startHost({ path, load, server: { maxRequests: limit } });
  const end = performance.now() + soakSeconds * 1000;
  const resident = [];
  let [answered, left, refused] = [0, 0, 0];
  const client = async (number) => {
    for (let i = 0; performance.now() < end; i++) {
      const control = new AbortController();
      const goesAway = i % 5 === 4;
      const timer = goesAway ? setTimeout(() => control.abort(), (number * 37 + i * 11) % 200) : undefined;
      const body = { prompt: Array.from({ length: 1 + ((number * i) % 100) }, (_, j) => (i + j) % host.vocabulary) };
      const max_tokens = 1 + ((number + i) % 60);
      try {
        const { status } = await send(host.url, { ...body, max_tokens, stream: i % 2 === 0 }, control);
        if (status === 200) answered++;
        else {
          refused++;
          await new Promise((resolve) => setTimeout(resolve, 50));
        }
      } catch (error) {
        if (!goesAway) throw error;
        left++;
      }
      clearTimeout(timer);
    }
  };
  const clients = Array.from({ length: 2 * limit }, (_, number) => client(number));
  const watch = setInterval(async () => resident.push(await host.ask('resident')), soakSeconds * 20);
  await Promise.all(clients);
  clearInterval(watch);
  const { freeBlocks, blocks } = await host.ask('state');
  await host.stop();
  const fifths = Array.from({ length: 5 }, (_, i) => {
    const those = resident.slice((resident.length * i) / 5, (resident.length * (i + 1)) / 5);
    return those.reduce((sum, bytes) => sum + bytes, 0) / those.length;
  });
  console.log(
    `${soakSeconds} s of ${2 * limit} clients: ${answered} answered, ${refused} refused, ${left} gone; resident in fifths of ` +
      `the time ${fifths.map(megabytes).join(', ')} (last over second: ${(fifths[4] / fifths[1]).toFixed(3)}); ` +
      `${blocks - freeBlocks} blocks not given back`,
  );
}

const parts = { burst, stop: stopWithStreams, soak };
for (const part of values.parts.split(',')) await parts[part]();
