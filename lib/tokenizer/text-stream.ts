import { StopScanner } from './stop-scanner.ts';
import type { Tokenizer } from './tokenizer.ts';

/** Ids after which a run of text that never becomes valid UTF-8 is cut. */
const longRun = 16;

export interface TextStreamOptions {
  /** Text ends before the first of these; each has at least one character. @default [] */
  stop?: readonly string[];
  /** Leave out begin, end and other special tokens. @default true */
  skipSpecialTokens?: boolean;
  /** Those that are not left out, by their text. @default [] */
  specialTokens?: readonly string[] | undefined;
}

/**
 * Turns ids into text one at a time. No piece splits a character: bytes that may be the start of one are held back until
 * the next id, and come out as U+FFFD only if nothing completes them. The pieces joined are what `Tokenizer.decode` gives
 * for all ids at once, cut before the stop string that is completed first (the longest of those that end together).
 */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecialTokens: boolean;
  readonly #specialTokens: ReadonlySet<string>;
  readonly #scanner: StopScanner;
  /** Ids whose text is out, kept because decoders treat the start of a text differently from its middle. */
  #context: number[] = [];
  #contextText = '';
  /** Ids whose text is not all out. */
  #pending: number[] = [];
  /** Characters of the pending text that are out. */
  #released = 0;

  constructor(tokenizer: Tokenizer, options: TextStreamOptions = {}) {
    this.#tokenizer = tokenizer;
    this.#skipSpecialTokens = options.skipSpecialTokens ?? true;
    this.#specialTokens = new Set(options.specialTokens);
    this.#scanner = new StopScanner(options.stop ?? []);
  }

  /** The stop string that ended the text. */
  get stopped(): string | undefined {
    return this.#scanner.stopped;
  }

  /** @returns The text that this id makes certain; often empty. */
  push(id: number): string {
    if (this.stopped !== undefined) return '';
    const piece = this.#tokenizer.piece(id);
    if (piece === undefined) return '';
    if (this.#skipSpecialTokens && this.#tokenizer.isSpecial(id) && !this.#specialTokens.has(piece)) return '';
    this.#pending.push(id);
    const text = this.#pendingText();
    // A UTF-8 sequence that is still incomplete decodes to exactly one U+FFFD at the end.
    const incomplete = text.endsWith('\uFFFD');
    const fresh = text.slice(this.#released, incomplete ? -1 : undefined);
    this.#released += fresh.length;
    if (!incomplete && text !== '') {
      this.#context = this.#pending;
      this.#contextText = this.#tokenizer.decode(this.#context);
      this.#pending = [];
      this.#released = 0;
    } else if (this.#pending.length % longRun === 0) {
      this.#shorten(text);
    }
    return this.#scanner.push(fresh);
  }

  /** Call once after the last id. @returns What was held back. */
  end(): string {
    const rest = this.#pendingText().slice(this.#released);
    this.#pending = [];
    return this.#scanner.push(rest) + this.#scanner.end();
  }

  #pendingText(): string {
    if (this.#pending.length === 0) return '';
    return this.#tokenizer.decode([...this.#context, ...this.#pending]).slice(this.#contextText.length);
  }

  /**
   * Keeps a run that never decodes from being decoded from its beginning at every id. A sequence has at most four bytes
   * and every id at least one, so one of four neighbouring cuts falls between sequences: there the halves decode alone
   * to what they decode to together.
   */
  #shorten(text: string): void {
    const ids = [...this.#context, ...this.#pending];
    for (let cut = ids.length - 4; cut >= ids.length - 8; --cut) {
      const left = this.#tokenizer.decode(ids.slice(0, cut));
      const right = this.#tokenizer.decode(ids.slice(cut));
      if (left + right !== this.#contextText + text) continue;
      this.#released += this.#contextText.length - left.length;
      this.#context = [];
      this.#contextText = '';
      this.#pending = ids.slice(cut);
      return;
    }
  }
}
