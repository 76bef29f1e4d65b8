/** API keys: every route but /health asks for one where the server has any. */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readSmallFile } from '../checkpoint/json-file.ts';
import { EspalierError } from '../errors.ts';
import { HttpError } from './errors.ts';

const hashOf = (text: string) => createHash('sha256').update(text).digest();

/** Compares hashes, all of them, so that the time tells nothing about the keys. */
export class ApiKeys {
  readonly #hashes: readonly Buffer[];

  constructor(keys: readonly string[]) {
    this.#hashes = keys.map(hashOf);
  }

  /**
   * @param rawHeaders Names and values in turns: of two `Authorization` Node would show the first.
   * @throws HttpError 401 unless there is one `Authorization`, and it is `Bearer` and one of the keys
   */
  check(rawHeaders: readonly string[]): void {
    if (this.#hashes.length === 0) return;
    const found = rawHeaders.filter((_, i) => i % 2 === 1 && rawHeaders[i - 1]!.toLowerCase() === 'authorization');
    const given = found.length === 1 ? /^Bearer (.+)$/.exec(found[0]!)?.[1] : undefined;
    const hash = hashOf(given ?? '');
    let matches = 0;
    for (const known of this.#hashes) matches += timingSafeEqual(known, hash) ? 1 : 0;
    if (given !== undefined && matches > 0) return;
    throw new HttpError(401, 'a valid API key is needed: Authorization: Bearer KEY', { code: 'invalid_api_key' });
  }
}

/** A key a line; empty lines and lines that begin with # are left out. @throws USAGE if there is none */
export function readKeys(path: string): string[] {
  const text = readSmallFile(path, 'USAGE', 2 ** 20).toString();
  const keys = text
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
  if (keys.length > 0) return keys;
  throw new EspalierError('USAGE', `${path} holds no API key; it needs one a line`, {
    file: path,
    field: 'apiKeyFile',
  });
}
