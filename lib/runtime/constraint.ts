/** The tokens that may come next in an answer of a given form, computed while other answers go on. */
import type { Matcher } from '../grammar/grammars.ts';

export class Constraint {
  readonly #matcher: Matcher;
  readonly #onReady: () => void;
  readonly #onError: (error: unknown) => void;
  #mask: Int32Array | undefined;
  /** Settles when the mask under way is there; undefined while none is. */
  pending: Promise<void> | undefined;

  constructor(matcher: Matcher, onReady: () => void, onError: (error: unknown) => void) {
    this.#matcher = matcher;
    this.#onReady = onReady;
    this.#onError = onError;
    this.advance();
  }

  /** Of the next token; undefined while it is being computed. */
  get mask(): Int32Array | undefined {
    return this.#mask;
  }

  /** The answer has one more token, or begins. */
  advance(token?: number): void {
    this.#mask = undefined;
    this.pending = this.#matcher.next(token).then(
      (mask) => {
        this.#mask = mask;
        this.pending = undefined;
        this.#onReady();
      },
      (error: unknown) => {
        this.pending = undefined;
        this.#onError(error);
      },
    );
  }
}
