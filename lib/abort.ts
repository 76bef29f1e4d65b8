import { EspalierError } from './errors.ts';

/** Throws `ABORTED` once the signal has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new EspalierError('ABORTED', 'stopped on request', { cause: signal.reason });
}
