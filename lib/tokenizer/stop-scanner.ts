/**
 * Ends a text that comes in pieces before the first stop string in it, wherever the pieces are cut: the stop string that
 * is completed first wins, and of those completed by the same character the longest.
 */
export class StopScanner {
  /** The stop string that ended the text. */
  stopped: string | undefined;
  readonly #stops: readonly string[];
  readonly #longest: number;
  /** The longest end of the text so far that a stop string begins with. */
  #held = '';

  constructor(stops: readonly string[]) {
    this.#stops = stops;
    this.#longest = Math.max(0, ...stops.map((stop) => stop.length));
  }

  /** @returns The text that is certain not to belong to a stop string. */
  push(piece: string): string {
    if (this.stopped !== undefined) return '';
    const text = this.#held + piece;
    let start = 0;
    let end = Number.POSITIVE_INFINITY;
    for (const stop of this.#stops) {
      const at = text.indexOf(stop);
      if (at < 0) continue;
      const past = at + stop.length;
      if (past > end || (past === end && at >= start)) continue;
      [start, end] = [at, past];
      this.stopped = stop;
    }
    if (this.stopped !== undefined) {
      this.#held = '';
      return text.slice(0, start);
    }
    const kept = text.length - this.#possibleStop(text);
    this.#held = text.slice(kept);
    return text.slice(0, kept);
  }

  /** @returns What was held back, now that no more text comes. */
  end(): string {
    const rest = this.#held;
    this.#held = '';
    return rest;
  }

  /** Length of the longest end of `text` with which a stop string begins. */
  #possibleStop(text: string): number {
    for (let length = Math.min(this.#longest - 1, text.length); length > 0; --length) {
      const tail = text.slice(-length);
      if (this.#stops.some((stop) => stop.startsWith(tail))) return length;
    }
    return 0;
  }
}
