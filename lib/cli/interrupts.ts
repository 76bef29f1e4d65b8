import type { Terminal } from './terminal.ts';

/** Ctrl-C and SIGTERM: the first asks the work to stop cleanly, the second ends the process at once with status 130. */
export class Interrupts {
  readonly #controller = new AbortController();
  readonly #terminal: Terminal;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
    process.on('SIGINT', this.#onSignal);
    process.on('SIGTERM', this.#onSignal);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  readonly #onSignal = () => {
    if (this.signal.aborted) process.exit(130);
    this.#terminal.note('stopping; once more to quit at once');
    this.#controller.abort();
  };

  [Symbol.dispose](): void {
    process.off('SIGINT', this.#onSignal);
    process.off('SIGTERM', this.#onSignal);
  }
}
