/** Prometheus metrics: vLLM's names and buckets under our prefix. */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { FinishReason } from '../runtime/generate.ts';
import type { Model } from '../runtime/model.ts';
import type { Usage } from './answers.ts';

const prefix = 'espalier_';
const secondsToFirst = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
];
const secondsBetween = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80];
/** 1, 2, 5, 10, … */
const tokenCounts = Array.from({ length: 20 }, (_, i) => [1, 2, 5][i % 3]! * 10 ** Math.floor(i / 3));
const secondsWhole = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680];

/** The times of one request, until it is disposed. */
export interface RequestTimer extends Disposable {
  /** A token of answer number `index` came. */
  token(index: number): void;
  /** It was answered whole. */
  finish(usage: Usage, reasons: readonly FinishReason[]): void;
}

export class Metrics {
  readonly #registry = new Registry();
  readonly #prompt: Counter;
  readonly #generated: Counter;
  readonly #finished: Counter<'finished_reason'>;
  readonly #cancelled: Counter;
  readonly #first: Histogram;
  readonly #between: Histogram;
  readonly #whole: Histogram;
  readonly #promptTokens: Histogram;
  readonly #answerTokens: Histogram;
  readonly #answers: Histogram;

  constructor(model: Model, modelName: string) {
    const registers = [this.#registry];
    this.#registry.setDefaultLabels({ model_name: modelName });
    const gauge = (name: string, help: string, value: () => number) =>
      new Gauge({
        name: prefix + name,
        help,
        registers,
        collect() {
          this.set(value());
        },
      });
    const counter = (name: string, help: string) => new Counter({ name: prefix + name, help, registers });
    const histogram = (name: string, help: string, buckets: number[]) =>
      new Histogram({ name: prefix + name, help, buckets, registers });
    gauge('num_requests_running', 'Sequences that have blocks of the KV cache', () => model.scheduler.load.running);
    gauge('num_requests_waiting', 'Sequences that wait for some', () => model.scheduler.load.waiting);
    gauge(
      'kv_cache_usage_perc',
      'Share of its blocks that sequences use, 0 to 1',
      () => 1 - model.kv.free / model.kv.size,
    );
    const total = (name: string, help: string, value: () => number) =>
      new Counter({
        name: prefix + name,
        help,
        registers,
        collect() {
          this.reset();
          this.inc(value());
        },
      });
    const { totals } = model.scheduler;
    total(
      'num_preemptions_total',
      'Times that a sequence gave its blocks back to start again',
      () => totals.preemptions,
    );
    total(
      'prefix_cache_queries_total',
      'Tokens of sequences that were looked for in the cache',
      () => totals.admittedTokens,
    );
    total('prefix_cache_hits_total', 'Those of them that were there', () => totals.cachedTokens);
    this.#prompt = counter('prompt_tokens_total', 'Tokens of prompts');
    this.#generated = counter('generation_tokens_total', 'Tokens of answers');
    this.#finished = new Counter({
      name: `${prefix}request_success_total`,
      help: 'Answers of requests that were answered whole',
      labelNames: ['finished_reason'],
      registers,
    });
    this.#cancelled = counter(
      'requests_cancelled_total',
      'Requests that ended early: the client went away, or the server stopped',
    );
    this.#first = histogram('time_to_first_token_seconds', 'From a request to its first token', secondsToFirst);
    this.#between = histogram('inter_token_latency_seconds', 'From a token to the next of its answer', secondsBetween);
    this.#whole = histogram('e2e_request_latency_seconds', 'From a request to the end of its answer', secondsWhole);
    this.#promptTokens = histogram('request_prompt_tokens', 'Tokens of the prompts of a request', tokenCounts);
    this.#answerTokens = histogram('request_generation_tokens', 'Tokens of the answers of a request', tokenCounts);
    this.#answers = histogram('request_params_n', 'Answers of a request', [1, 2, 5, 10, 20]);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  text(): Promise<string> {
    return this.#registry.metrics();
  }

  /** @param signal Fires where the request ends early. */
  start(signal: AbortSignal): RequestTimer {
    const begin = performance.now();
    const last = new Map<number, number>();
    let isFinished = false;
    return {
      token: (index) => {
        const now = performance.now();
        this.#generated.inc();
        const before = last.get(index);
        last.set(index, now);
        if (before === undefined) this.#first.observe((now - begin) / 1000);
        else this.#between.observe((now - before) / 1000);
      },
      finish: ({ prompt_tokens, completion_tokens }, reasons) => {
        isFinished = true;
        this.#prompt.inc(prompt_tokens);
        this.#promptTokens.observe(prompt_tokens);
        this.#answerTokens.observe(completion_tokens);
        this.#answers.observe(reasons.length);
        for (const finished_reason of reasons) this.#finished.inc({ finished_reason });
        this.#whole.observe((performance.now() - begin) / 1000);
      },
      [Symbol.dispose]: () => {
        if (!isFinished && signal.aborted) this.#cancelled.inc();
      },
    };
  }
}
