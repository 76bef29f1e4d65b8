/** How many requests a server takes on at a time. */
import { HttpError } from './errors.ts';

/** A slot is taken before anything is computed for a request, and given back when it has ended. */
export class Admission {
  readonly #slots: number;
  #taken = 0;
  #isDraining = false;
  readonly #whenIdle: (() => void)[] = [];

  constructor(slots: number) {
    this.#slots = slots;
  }

  get taken(): number {
    return this.#taken;
  }

  get isDraining(): boolean {
    return this.#isDraining;
  }

  /** @throws HttpError 503 when all slots are taken, or the server is about to stop */
  requireRoom(): void {
    const headers = { 'retry-after': '1' };
    if (this.#isDraining) throw new HttpError(503, 'the server is stopping', { code: 'draining', headers });
    if (this.#taken === this.#slots) {
      throw new HttpError(503, `the server has its ${this.#slots} requests; try again`, {
        code: 'overloaded',
        headers,
      });
    }
  }

  /** @throws HttpError as requireRoom */
  take(): Disposable {
    this.requireRoom();
    this.#taken++;
    let isTaken = true;
    return {
      [Symbol.dispose]: () => {
        if (!isTaken) return;
        isTaken = false;
        if (--this.#taken === 0) for (const notify of this.#whenIdle.splice(0)) notify();
      },
    };
  }

  /** Takes on no more; resolves when all have ended. */
  async drain(): Promise<void> {
    this.#isDraining = true;
    if (this.#taken > 0) await new Promise<void>((resolve) => this.#whenIdle.push(resolve));
  }
}
