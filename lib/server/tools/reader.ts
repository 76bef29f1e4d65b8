/** Tells the calls in an answer from the text around them, while it is written. */
import type { CallShape } from './calls.ts';
import type { CallForm } from './forms.ts';

/** What a piece of an answer adds to call number `index`: its id and name first, then its arguments. */
export interface CallDelta {
  readonly index: number;
  readonly opening?: { readonly id: string; readonly name: string } | undefined;
  /** Of the JSON of its arguments, as the model wrote it. */
  readonly arguments: string;
}

interface Reading {
  text: string;
  readonly calls: CallDelta[];
}

/**
 * A call is one from where its name is known and its arguments begin. What turns out before that not to be one stays text; what
 * breaks off later is a call whose arguments break off.
 */
export class ToolCallReader {
  readonly #form: CallForm;
  readonly #marks: { readonly begin: string[]; readonly separator: string[]; readonly end: string[] };
  #state: 'text' | 'call' | 'behind';
  #held = '';
  /** Of what may be a call, all that was read so far. */
  #raw = '';
  #call: CallShape | undefined;
  #isCall = false;
  #calls = 0;

  constructor(form: CallForm) {
    this.#form = form;
    this.#marks = { begin: wordsOf(form.begin), separator: wordsOf(form.separator), end: wordsOf(form.end) };
    this.#state = form.begin === '' ? 'call' : 'text';
  }

  /** @param isLast Nothing more comes. */
  push(text: string, isLast: boolean): Reading {
    const reading: Reading = { text: '', calls: [] };
    this.#held += text;
    while (this.#held !== '' && this.#step(reading, isLast));
    if (!isLast) return reading;
    reading.text += this.#raw + this.#held;
    this.#raw = '';
    this.#held = '';
    return reading;
  }

  /** @returns Whether there may be more to read in what is held. */
  #step(reading: Reading, isLast: boolean): boolean {
    if (this.#state === 'text') return this.#readText(reading);
    if (this.#state === 'call') return this.#readCall(reading);
    return this.#readBehind(isLast);
  }

  #readText(reading: Reading): boolean {
    const { begin } = this.#marks;
    const { at, length } = begin.length === 0 ? { at: this.#held.length, length: undefined } : find(this.#held, begin);
    reading.text += this.#held.slice(0, at);
    this.#held = this.#held.slice(at);
    if (length === undefined) return false;
    this.#raw = this.#cut(length);
    this.#state = 'call';
    return true;
  }

  #readCall(reading: Reading): boolean {
    this.#call ??= this.#form.shape();
    const call = this.#call;
    this.#raw += this.#cut(call.read(this.#held));
    const { name, state } = call;
    const index = this.#calls;
    if (name !== undefined) {
      if (!this.#isCall) reading.calls.push({ index, opening: { id: this.#form.newId(), name }, arguments: '' });
      this.#isCall = true;
      this.#raw = '';
      const fresh = call.arguments();
      if (fresh !== '') reading.calls.push({ index, arguments: fresh });
    }
    if (state === 'open') return false;
    reading.text += this.#raw;
    this.#raw = '';
    if (this.#isCall) this.#calls++;
    this.#isCall = false;
    this.#call = undefined;
    this.#state = state === 'whole' ? 'behind' : 'text';
    return true;
  }

  /** Behind a call: another one, or the end of them. */
  #readBehind(isLast: boolean): boolean {
    const next = match(this.#held, 0, this.#marks.separator);
    if (typeof next === 'number') {
      this.#raw = '';
      this.#cut(next);
      this.#state = 'call';
      return true;
    }
    const end = match(this.#held, 0, this.#marks.end);
    if (next === 'perhaps' || end === 'perhaps') {
      if (!isLast) return false;
      if (typeof end !== 'number') this.#held = '';
    }
    this.#cut(typeof end === 'number' ? end : 0);
    this.#state = 'text';
    return true;
  }

  /** Takes so many characters from what is held. */
  #cut(length: number): string {
    const cut = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    return cut;
  }
}

function wordsOf(text: string): string[] {
  return text.split(/\s+/).filter((word) => word !== '');
}

/** The length of these words with any whitespace before them, at `at`; `perhaps` if the text ends before that is certain. */
function match(text: string, at: number, words: readonly string[]): number | 'perhaps' | undefined {
  let i = at;
  for (const word of words) {
    while (/\s/.test(text[i] ?? '')) i++;
    const found = text.slice(i, i + word.length);
    if (found !== word) return i + found.length === text.length && word.startsWith(found) ? 'perhaps' : undefined;
    i += word.length;
  }
  return i - at;
}

/** Where these words stand first, or might stand once more has come; at the end if nowhere. */
function find(text: string, words: readonly string[]): { at: number; length: number | undefined } {
  const first = words[0]![0]!;
  for (let at = text.indexOf(first); at >= 0; at = text.indexOf(first, at + 1)) {
    const length = match(text, at, words);
    if (length === 'perhaps') return { at, length: undefined };
    if (length !== undefined) return { at, length };
  }
  return { at: text.length, length: undefined };
}
