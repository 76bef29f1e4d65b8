import { expect } from 'vitest';
import { type EspalierError, isEspalierError } from '../../lib/errors.ts';

const maxGrowth = 200 * 2 ** 20;

/** The error that `call` throws; fails if it throws none, takes over 10 s, or memory grows by 200 MB. */
export function errorOf(call: () => unknown): EspalierError {
  const before = process.memoryUsage().rss;
  const start = performance.now();
  let error: unknown;
  try {
    call();
  } catch (thrown) {
    error = thrown;
  }
  const growth = process.memoryUsage().rss - before;
  expect(error, 'it must be refused').toBeDefined();
  if (!isEspalierError(error)) throw error;
  expect(performance.now() - start).toBeLessThan(10_000);
  expect(growth).toBeLessThan(maxGrowth);
  expect(error.message.length).toBeLessThan(2000);
  return error;
}
