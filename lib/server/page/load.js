/** What the server is busy with, from its metrics. */
import { ask } from './api.js';

const every = 1000;
/** Measurements in the curve. */
const shown = 60;

const found = (id) => document.getElementById(id);
const rates = [];
let before;

/** Begins to watch; `failed` is told what a measurement failed with, and undefined when one succeeds. */
export async function watchLoad(failed) {
  for (;;) {
    if (!document.hidden) {
      try {
        show(parse(await (await ask('metrics')).text()));
        failed(undefined);
      } catch (error) {
        before = undefined;
        for (const id of ['rate', 'running', 'waiting', 'cache']) found(id).textContent = '–';
        failed(error);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, every));
  }
}

/** Values by name, without their labels: this server has one model. */
function parse(text) {
  const lines = [...text.matchAll(/^espalier_(\w+)(?:\{[^}]*\})? (\S+)$/gm)];
  return Object.fromEntries(lines.map(([, name, value]) => [name, Number(value)]));
}

function show(metrics) {
  const now = { time: performance.now(), tokens: metrics.generation_tokens_total };
  if (before !== undefined) {
    rates.push(((now.tokens - before.tokens) * 1000) / (now.time - before.time));
    if (rates.length > shown) rates.shift();
    found('rate').textContent = rates.at(-1).toFixed(rates.at(-1) < 10 ? 1 : 0);
    curve();
  }
  before = now;
  found('running').textContent = metrics.num_requests_running;
  found('waiting').textContent = metrics.num_requests_waiting;
  found('cache').textContent = `${(100 * metrics.kv_cache_usage_perc).toFixed(0)} %`;
  found('cache-bar').value = metrics.kv_cache_usage_perc;
}

function curve() {
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, i) => `${shown - rates.length + i},${(19 - (18 * rate) / most).toFixed(1)}`);
  found('history').firstElementChild.setAttribute('points', points.join(' '));
}
