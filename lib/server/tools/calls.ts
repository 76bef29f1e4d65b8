/** The two shapes of a call, read as it is written: a JSON object, and a name with its arguments behind it. */
import { JsonValue } from './json-value.ts';

/** Reads one call. */
export interface CallShape {
  /** `whole` behind its last character, `broken` where it can be none. */
  readonly state: 'open' | 'whole' | 'broken';
  /** Known once the arguments may be given on. */
  readonly name: string | undefined;
  /** Takes more of it. @returns How many characters belong to it, or were read before it broke. */
  read(text: string): number;
  /** What has come of the arguments since the last call, as it was written. */
  arguments(): string;
}

/** `{"name": …, "arguments": …}`: members in any order, others passed over. */
export class ObjectCall implements CallShape {
  state: CallShape['state'] = 'open';
  readonly #argumentsName: string;
  #expected: 'object' | 'key' | 'colon' | 'value' | 'comma' = 'object';
  /** The key or value that is being read, and its text, unless that is streamed. */
  #value: JsonValue | undefined;
  #text = '';
  #key = '';
  #name: string | undefined;
  #isStreamed = false;
  #hasArguments = false;
  #fresh = '';

  constructor(argumentsName: string) {
    this.#argumentsName = argumentsName;
  }

  get name(): string | undefined {
    return this.#hasArguments || this.state === 'whole' ? this.#name : undefined;
  }

  arguments(): string {
    const fresh = this.#fresh;
    this.#fresh = '';
    return fresh;
  }

  read(text: string): number {
    let i = 0;
    while (i < text.length && this.state === 'open')
      i = this.#value === undefined ? this.#step(text, i) : this.#take(text, i);
    return i;
  }

  /** Reads a character between keys and values. */
  #step(text: string, i: number): number {
    const character = text[i]!;
    if (/\s/.test(character)) return i + 1;
    if (this.#expected === 'object' && character === '{') this.#expected = 'key';
    else if (this.#expected === 'colon' && character === ':') this.#expected = 'value';
    else if (this.#expected === 'comma' && character === ',') this.#expected = 'key';
    else if (this.#expected === 'comma' && character === '}') this.#close();
    else if ((this.#expected === 'key' && character === '"') || this.#expected === 'value') return this.#begin(text, i);
    else this.state = 'broken';
    return i + 1;
  }

  #begin(text: string, i: number): number {
    this.#value = new JsonValue();
    this.#text = '';
    if (this.#expected === 'value' && this.#key === this.#argumentsName) {
      this.#isStreamed = text[i] === '{';
      this.#hasArguments ||= this.#isStreamed;
    }
    return this.#take(text, i);
  }

  #take(text: string, from: number): number {
    const value = this.#value!;
    const end = value.take(text, from);
    if (this.#isStreamed) this.#fresh += text.slice(from, end);
    else this.#text += text.slice(from, end);
    if (value.isOver) this.#finish();
    return end;
  }

  #finish(): void {
    this.#value = undefined;
    if (this.#isStreamed) {
      this.#isStreamed = false;
      this.#expected = 'comma';
      return;
    }
    let read: unknown;
    try {
      read = JSON.parse(this.#text);
    } catch {
      this.state = 'broken';
      return;
    }
    if (this.#expected === 'key') {
      this.#key = String(read);
      this.#expected = 'colon';
      return;
    }
    this.#expected = 'comma';
    if (this.#key === this.#argumentsName && read !== null) {
      // Some models write them as a text, as the API gives them.
      this.#fresh = typeof read === 'string' ? read : this.#text;
      this.#hasArguments = true;
    }
    if (this.#key !== 'name') return;
    if (typeof read === 'string') this.#name = read;
    else this.state = 'broken';
  }

  #close(): void {
    this.state = this.#name === undefined ? 'broken' : 'whole';
    if (!this.#hasArguments) this.#fresh = '{}';
  }
}

const longestHead = 300;
const head = /^\s*([\w.-]+)(?:\[CALL_ID\]\w*)?\[ARGS\]\s*$/;

/** `name[ARGS]{…}`; some models write an id of the call behind the name. */
export class NamedCall implements CallShape {
  state: CallShape['state'] = 'open';
  name: string | undefined;
  #head = '';
  #value: JsonValue | undefined;
  #fresh = '';

  arguments(): string {
    const fresh = this.#fresh;
    this.#fresh = '';
    return fresh;
  }

  read(text: string): number {
    const begin = this.#value === undefined ? this.#readHead(text) : 0;
    if (this.#value === undefined) return begin;
    const end = this.#value.take(text, begin);
    this.#fresh += text.slice(begin, end);
    if (this.#value.isOver) this.state = 'whole';
    return end;
  }

  /** @returns Where the arguments begin, or what was read. */
  #readHead(text: string): number {
    const brace = text.indexOf('{');
    const end = brace < 0 ? text.length : brace;
    this.#head += text.slice(0, end);
    if (brace >= 0) this.name = head.exec(this.#head)?.[1];
    if (this.name !== undefined) this.#value = new JsonValue();
    else if (brace >= 0 || this.#head.length > longestHead) this.state = 'broken';
    return end;
  }
}
