/** The thread that runs grammars, with a limit to the time of each thing that it is asked. */
import { Worker } from 'node:worker_threads';
import type { GrammarSource } from './grammars.ts';

export type GrammarCall =
  | { readonly kind: 'compile'; readonly source: GrammarSource }
  | {
      readonly kind: 'start';
      readonly matcher: number;
      readonly source: GrammarSource;
      /** Those that it may allow, by name. */
      readonly specialTokens: readonly string[];
      /** Of the answer so far. */
      readonly tokens: readonly number[];
    }
  | { readonly kind: 'next'; readonly matcher: number; readonly token: number | undefined }
  | { readonly kind: 'end'; readonly matcher: number };

/** What the thread must know of a tokenizer. */
export interface GrammarVocabulary {
  /** A row for each logit, bytes spelled as GPT-2 does; '' for tokens that no text contains. */
  readonly tokens: readonly string[];
  readonly endTokens: readonly number[];
  /** Allowed only where a `start` says so. */
  readonly specialTokens: readonly { readonly id: number; readonly name: string }[];
}

/** The thread has ended, and not because of what it was asked here. */
export class ThreadLost extends Error {
  /** What it could not bear; undefined where it was told to end. */
  readonly culprit: string | undefined;

  constructor(culprit: string | undefined, cause: Error) {
    super('the thread has ended', { cause });
    this.culprit = culprit;
  }
}

interface Pending {
  readonly grammar: string;
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
  #lost: ThreadLost | undefined;

  constructor(vocabulary: GrammarVocabulary) {
    this.#worker = new Worker(new URL('./worker.js', import.meta.url), { workerData: vocabulary });
    this.#worker.on('message', (reply: 'ready' | { value?: Int32Array; error?: string }) => {
      if (reply === 'ready') {
        this.#isReady = true;
        this.#watch();
        return;
      }
      const { value, error } = reply;
      // After a trap the library is of no more use.
      if (error !== undefined) return this.#fail(new Error(error));
      const first = this.#pending.shift();
      this.#watch();
      first?.resolve(value);
    });
    this.#worker.on('error', (error) => this.#fail(error));
    this.#worker.unref();
  }

  /** Whether it has ended, so that another must take its place. */
  get isOver(): boolean {
    return this.#lost !== undefined;
  }

  /**
   * Rejects with what the thread says, or when it has taken longer than `milliseconds`; both end the thread. What else it was
   * asked, and will be, rejects with ThreadLost.
   * @param grammar What the call is for.
   */
  call(call: GrammarCall, grammar: string, milliseconds: number): Promise<Int32Array | undefined> {
    return new Promise((resolve, reject) => {
      if (this.#lost !== undefined) {
        reject(this.#lost);
        return;
      }
      this.#pending.push({ grammar, milliseconds, resolve, reject });
      this.#worker.postMessage(call);
      if (this.#pending.length === 1) this.#watch();
    });
  }

  end(): void {
    this.#stop(new ThreadLost(undefined, new Error('it was told to end')));
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

  /** Ends because of the call that is first. */
  #fail(error: Error): void {
    const first = this.#pending.shift();
    first?.reject(error);
    this.#stop(new ThreadLost(first?.grammar, error));
  }

  #stop(lost: ThreadLost): void {
    this.#lost ??= lost;
    clearTimeout(this.#timer);
    void this.#worker.terminate();
    for (const { reject } of this.#pending.splice(0)) reject(this.#lost);
  }
}
