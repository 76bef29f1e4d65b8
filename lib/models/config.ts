/** Typed reading of config.json: a field is what it must be, or a `CONFIG` error says what was found and what is allowed. */
import { EspalierError } from '../errors.ts';

/** Upper bounds that no model reaches and that keep a hostile config from costing time or memory. */
export const limits = {
  layers: 4096,
  experts: 65_536,
  heads: 65_536,
  headDim: 16_384,
  /** Hidden size and the widths of feed-forwards. */
  width: 1 << 24,
  vocabulary: 1 << 28,
  positions: 2 ** 40,
} as const;

type JsonObject = Readonly<Record<string, unknown>>;

export interface IntegerRange {
  /** @default 1 */
  readonly min?: number;
  /** @default 2 ** 40 */
  readonly max?: number;
}

/** The fields of one JSON object. It remembers which ones were asked for, so that the others can be reported. */
export class ConfigFields {
  /** Things worth telling the user that do not stop the load. */
  readonly warnings: string[];
  readonly #object: JsonObject;
  readonly #file: string;
  readonly #path: string;
  readonly #consulted = new Set<string>();

  /**
   * @param value What JSON.parse gave; anything but an object is a `CONFIG` error.
   * @param file Named in errors.
   * @param path Prefix of field names in errors, for a nested object: `rope_parameters.`.
   */
  constructor(value: unknown, file = 'config.json', path = '', warnings: string[] = []) {
    if (!isObject(value)) {
      const where = path === '' ? file : `${file}: ${path.slice(0, -1)}`;
      const details = path === '' ? { file } : { file, field: path.slice(0, -1) };
      throw new EspalierError('CONFIG', `${where} is ${show(value)}, but must be an object of named fields.`, details);
    }
    this.#object = value;
    this.#file = file;
    this.#path = path;
    this.warnings = warnings;
  }

  /** The value as it stands; undefined where it is absent or null. */
  raw(field: string): unknown {
    this.#consulted.add(field);
    return Object.hasOwn(this.#object, field) ? (this.#object[field] ?? undefined) : undefined;
  }

  /** Whether the field is written down, be it as null: a family's default is for the others. */
  mentions(field: string): boolean {
    return Object.hasOwn(this.#object, field);
  }

  names(): string[] {
    return Object.keys(this.#object);
  }

  /** Names of the fields that nobody asked for. */
  unread(): string[] {
    return this.names().filter((name) => !this.#consulted.has(name));
  }

  integer(field: string, range: IntegerRange = {}, fallback?: number): number {
    const value = this.optionalInteger(field, range) ?? fallback;
    return value ?? this.#missing(field, allowedIntegers(range));
  }

  optionalInteger(field: string, range: IntegerRange = {}): number | undefined {
    const value = this.raw(field);
    if (value === undefined || isInteger(value, range)) return value;
    return this.fail(field, `is ${show(value)}`, allowedIntegers(range));
  }

  /** A finite number, above zero unless `zero` is allowed. */
  number(field: string, fallback?: number, zero: 'zero' | 'positive' = 'positive'): number {
    return this.optionalNumber(field, zero) ?? fallback ?? this.#missing(field, allowedNumbers(zero));
  }

  optionalNumber(field: string, zero: 'zero' | 'positive' = 'positive'): number | undefined {
    const value = this.raw(field);
    if (value === undefined) return undefined;
    if (typeof value === 'number' && Number.isFinite(value) && (value > 0 || (value === 0 && zero === 'zero'))) {
      return value;
    }
    return this.fail(field, `is ${show(value)}`, allowedNumbers(zero));
  }

  boolean(field: string, fallback: boolean): boolean {
    const value = this.raw(field) ?? fallback;
    if (typeof value === 'boolean') return value;
    return this.fail(field, `is ${show(value)}`, 'true or false');
  }

  optionalText(field: string): string | undefined {
    const value = this.raw(field);
    if (value === undefined || typeof value === 'string') return value;
    return this.fail(field, `is ${show(value)}`, 'a string');
  }

  integers(field: string, range: IntegerRange = {}): number[] | undefined {
    const value = this.raw(field);
    if (value === undefined || isListOfIntegers(value, range)) return value;
    return this.fail(field, `is ${show(value)}`, `a list, each item ${allowedIntegers(range)}`);
  }

  /** One integer or a list of them, as a list. */
  oneOrMoreIntegers(field: string, range: IntegerRange = {}): number[] | undefined {
    const value = this.raw(field);
    if (value === undefined || isListOfIntegers(value, range)) return value;
    if (isInteger(value, range)) return [value];
    return this.fail(field, `is ${show(value)}`, `${allowedIntegers(range)}, or a list of such`);
  }

  texts(field: string): string[] | undefined {
    const value = this.raw(field);
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.every((item): item is string => typeof item === 'string')) return value;
    return this.fail(field, `is ${show(value)}`, 'a list of strings');
  }

  object(field: string): ConfigFields | undefined {
    const value = this.raw(field);
    if (value === undefined) return undefined;
    return new ConfigFields(value, this.#file, `${this.#path}${field}.`, this.warnings);
  }

  warn(message: string): void {
    this.warnings.push(`${this.#file}: ${message}`);
  }

  /** Throws `CONFIG`: `found` completes "the field …", `allowed` completes "but must be …". */
  fail(field: string, found: string, allowed: string): never {
    const name = this.#path + field;
    throw new EspalierError('CONFIG', `${this.#file}: ${name} ${found}, but must be ${allowed}.`, {
      file: this.#file,
      field: name,
    });
  }

  #missing(field: string, allowed: string): never {
    return this.fail(field, 'is missing', allowed);
  }
}

/** A JSON value for an error message, cut to a length that can be read. */
export function show(value: unknown): string {
  if (typeof value === 'number') return String(value);
  if (Array.isArray(value) && value.length > 16) return `a list of ${value.length} items`;
  const text =
    JSON.stringify(value, (key, item: unknown) => (key !== '' && isObject(item) ? '{…}' : item)) ?? 'undefined';
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isInteger(value: unknown, { min = 1, max = limits.positions }: IntegerRange): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max;
}

function isListOfIntegers(value: unknown, range: IntegerRange): value is number[] {
  return Array.isArray(value) && value.every((item) => isInteger(item, range));
}

function allowedIntegers({ min = 1, max = limits.positions }: IntegerRange): string {
  return `an integer from ${min} to ${max}`;
}

function allowedNumbers(zero: 'zero' | 'positive'): string {
  return zero === 'zero' ? 'a finite number, zero or above' : 'a finite number above zero';
}
