import { readFile, stat } from 'node:fs/promises';
import { EspalierError, fromSystemError } from '../errors.ts';

export type JsonObject = Record<string, unknown>;

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The largest tokenizer.json in use has 33 MB. */
const maxFileBytes = 128 * 1024 * 1024;

/** @returns `undefined` where there is no such file. */
export async function readJson(file: string): Promise<unknown> {
  const text = await readTokenizerFile(file);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new EspalierError('TOKENIZER', `${file} is not JSON: ${why}`, { file, cause: error });
  }
}

/** @returns `undefined` where there is no such file. */
export async function readTokenizerFile(file: string): Promise<string | undefined> {
  try {
    const found = await stat(file);
    if (!found.isFile()) throw new EspalierError('TOKENIZER', `${file} is not a regular file`, { file });
    if (found.size > maxFileBytes) {
      throw new EspalierError('TOKENIZER', `${file} has ${found.size} bytes, at most ${maxFileBytes} are read`, {
        file,
      });
    }
    return await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw fromSystemError(error, 'read', file);
  }
}
