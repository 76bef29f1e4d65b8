import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { type ErrorCode, EspalierError, fromSystemError } from '../errors.ts';

export interface JsonFile {
  text: string;
  value: Record<string, unknown>;
}

/** Reads a small file. Everything wrong with it is reported under `code`, except that the system refuses (`IO`). */
export function readSmallFile(path: string, code: ErrorCode, maxBytes: number): Buffer {
  const fail = (problem: string, cause?: unknown) =>
    new EspalierError(code, `${path} ${problem}`, { file: path, cause });
  let descriptor: number | undefined;
  try {
    // Opening a FIFO would wait for its writer without O_NONBLOCK.
    descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const found = fstatSync(descriptor);
    if (!found.isFile()) throw fail('is not a regular file');
    if (found.size > maxBytes) throw fail(`has ${found.size} bytes; at most ${maxBytes} are read`);
    return readFileSync(descriptor);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') throw fail('does not exist', error);
    throw fromSystemError(error, 'read', path);
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

/**
 * Reads a file that must hold one JSON object, with the errors of readSmallFile. A key such as `__proto__` becomes an
 * ordinary own property of `value`.
 */
export function readJsonFile(path: string, code: ErrorCode, maxBytes: number): JsonFile {
  const fail = (problem: string, cause?: unknown) =>
    new EspalierError(code, `${path} ${problem}`, { file: path, cause });
  const bytes = readSmallFile(path, code, maxBytes);
  let text: string;
  let value: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    value = JSON.parse(text);
  } catch (cause) {
    throw fail(`is not valid JSON: ${(cause as Error).message}`, cause);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw fail('must hold a JSON object');
  return { text, value: value as Record<string, unknown> };
}
