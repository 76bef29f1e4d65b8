import { EspalierError } from '../errors.ts';

/** `DATA`: what is wrong with a source of text or tokens, and what to do. */
export function dataError(source: string, problem: string, advice: string, cause?: unknown): EspalierError {
  return new EspalierError('DATA', `${source} ${problem}; ${advice}`, { file: source, cause });
}
