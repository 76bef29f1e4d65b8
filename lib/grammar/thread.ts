/** The thread that runs grammars, with a limit to the time of each thing that it is asked. */
import { Worker } from 'node:worker_threads';
import type { GrammarSource } from './grammars.ts';

export type GrammarCall =
  | { readonly kind: 'compile'; readonly source: GrammarSource }
  | { readonly kind: 'start'; readonly matcher: number; readonly source: GrammarSource }
  | { readonly kind: 'next'; readonly matcher: number; readonly token: number | undefined }
  | { readonly kind: 'end'; readonly matcher: number };

/** What the thread must know of a tokenizer. */
export interface GrammarVocabulary {
  /** A row for each logit, bytes spelled as GPT-2 does; '' for tokens that no text contains. */
  readonly tokens: readonly string[];
  readonly endTokens: readonly number[];
}

interface Pending {
  readonly milliseconds: number;
  resolve(value: Int32Array | undefined): void;
  reject(error: Error): void;
}

/** For starting the thread and reading the vocabulary. */
const startMilliseconds = 20_000;

export class GrammarThread {
  readonly #worker: Worker;
  readonly #pending: Pending[] = [];
  #timer: NodeJS.Timeout | undefined;
  #isReady = false;
  #failure: Error | undefined;

  constructor(vocabulary: GrammarVocabulary) {
    this.#worker = new Worker(new URL('./worker.js', import.meta.url), { workerData: vocabulary });
    this.#worker.on('message', (reply: 'ready' | { value?: Int32Array; error?: string }) => {
      if (reply === 'ready') {
        this.#isReady = true;
        this.#watch();
        return;
      }
      const { value, error } = reply;
      const first = this.#pending.shift();
      this.#watch();
      if (error === undefined) first?.resolve(value);
      else first?.reject(new Error(error));
    });
    this.#worker.on('error', (error) => this.#fail(error));
    this.#worker.unref();
  }

  /** Whether it has ended, so that another must take its place. */
  get isOver(): boolean {
    return this.#failure !== undefined;
  }

  /** Rejects with what the thread says, or when it has taken longer than `milliseconds`, which ends it. */
  call(call: GrammarCall, milliseconds: number): Promise<Int32Array | undefined> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) {
        reject(this.#failure);
        return;
      }
      this.#pending.push({ milliseconds, resolve, reject });
      this.#worker.postMessage(call);
      if (this.#pending.length === 1) this.#watch();
    });
  }

  end(): void {
    this.#fail(new Error('the thread has ended'));
  }

  /** Sets the clock for the call that is first now. */
  #watch(): void {
    clearTimeout(this.#timer);
    const [first] = this.#pending;
    if (first === undefined) {
      this.#worker.unref();
      return;
    }
    this.#worker.ref();
    const milliseconds = this.#isReady ? first.milliseconds : startMilliseconds;
    this.#timer = setTimeout(() => this.#fail(new Error(`it takes more than ${milliseconds} ms`)), milliseconds);
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    clearTimeout(this.#timer);
    void this.#worker.terminate();
    for (const { reject } of this.#pending.splice(0)) reject(error);
  }
}
