import { isUtf8 } from 'node:buffer';
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { fromSystemError } from '../errors.ts';
import { dataError } from './data-error.ts';

/** Longest text that is encoded in one piece: 32 MiB take half a minute and 1.5 GB of memory. */
export const maxTextBytes = 32 * 1024 * 1024;

const lineFeed = 0x0a;

/** A whole file as one text, with `\r\n` read as `\n`, and a byte order mark dropped. */
export async function readTextFile(file: string, size: number): Promise<string> {
  if (size > maxTextBytes) {
    const advice = 'split it into documents, one a line, as .jsonl, or give token ids as .u16 or .u32';
    throw dataError(file, `has ${size} bytes, at most ${maxTextBytes} are read as one text`, advice);
  }
  const bytes = await readFile(file).catch((error: unknown) => {
    throw fromSystemError(error, 'read', file);
  });
  if (!isUtf8(bytes)) {
    const line = lines(bytes).findIndex((each) => !isUtf8(each)) + 1;
    throw dataError(file, `is not UTF-8 (line ${line})`, 'convert it, for example with iconv -t UTF-8');
  }
  const zero = bytes.indexOf(0);
  if (zero >= 0) {
    const advice = 'token ids are read from files named .u16 or .u32, tables from .parquet';
    throw dataError(file, `is not a text: it has a NUL byte at offset ${zero}`, advice);
  }
  return new TextDecoder().decode(bytes).replaceAll('\r\n', '\n');
}

function lines(bytes: Buffer): Buffer[] {
  const found: Buffer[] = [];
  for (let start = 0; start <= bytes.length; ) {
    const end = bytes.indexOf(lineFeed, start);
    found.push(bytes.subarray(start, end < 0 ? bytes.length : end));
    start = end < 0 ? bytes.length + 1 : end + 1;
  }
  return found;
}

/** The `text` of every line of a .jsonl file, read as needed; blank lines are passed over. */
export async function* readJsonLines(file: string): AsyncGenerator<string> {
  let number = 0;
  for await (const line of readLines(file)) {
    ++number;
    if (line.length > maxTextBytes) {
      throw dataError(file, `line ${number} is longer than ${maxTextBytes} bytes`, 'split its text into several lines');
    }
    const text = textOfLine(line, (problem) =>
      dataError(file, `line ${number} ${problem}`, 'each line must be a JSON object with a "text"'),
    );
    if (text !== undefined) yield text;
  }
}

function textOfLine(line: Buffer, fail: (problem: string) => Error): string | undefined {
  if (!isUtf8(line)) throw fail('is not UTF-8');
  const source = new TextDecoder().decode(line);
  if (source.trim() === '') return undefined;
  let value: unknown;
  try {
    value = JSON.parse(source);
  } catch {
    throw fail('is not JSON');
  }
  const text = typeof value === 'object' && value !== null && 'text' in value ? value.text : undefined;
  if (typeof text === 'string') return text;
  const fields = typeof value === 'object' && value !== null && !Array.isArray(value) ? Object.keys(value) : undefined;
  throw fail(fields === undefined ? 'is not an object' : `has no "text" that is a string, only ${shown(fields)}`);
}

function shown(fields: string[]): string {
  const text = fields.map((field) => JSON.stringify(field)).join(', ') || 'no field';
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}

/** Lines without their line feeds. A line too long to use comes out cut at one byte above the limit, and ends the file. */
async function* readLines(file: string): AsyncGenerator<Buffer> {
  let parts: Buffer[] = [];
  let length = 0;
  try {
    for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>) {
      let start = 0;
      for (let end = chunk.indexOf(lineFeed); end >= 0; end = chunk.indexOf(lineFeed, start)) {
        yield Buffer.concat([...parts, chunk.subarray(start, end)]);
        parts = [];
        length = 0;
        start = end + 1;
      }
      parts.push(chunk.subarray(start));
      length += chunk.length - start;
      if (length > maxTextBytes) break;
    }
  } catch (error) {
    throw fromSystemError(error, 'read', file);
  }
  if (length > 0) yield Buffer.concat(parts, Math.min(length, maxTextBytes + 1));
}
