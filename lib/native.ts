/** How the addon is loaded and called; its functions are those of native-addon.ts. */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { throwIfAborted } from './abort.ts';
import { type ErrorCode, type ErrorDetails, EspalierError, errorCodes } from './errors.ts';
import type { NativeAddon, NativeJob } from './native-addon.ts';

export type * from './native-addon.ts';
export type * from './native-pruning.ts';

/** The folder that holds package.json. */
export const packageRoot: string = fileURLToPath(new URL('..', import.meta.url));
let loaded: NativeAddon | undefined;

/** Loads the addon at first use, so that `--help` and `import` stay fast. */
export function native(): NativeAddon {
  if (loaded === undefined) {
    try {
      loaded = createRequire(import.meta.url)('node-gyp-build')(packageRoot) as NativeAddon;
    } catch (cause) {
      throw new EspalierError(
        'NATIVE',
        `the native addon cannot be loaded (${firstLine(cause)}). Run "npx espalier build" to compile it here; ` +
          'that needs g++ and cmake or make (Debian: apt-get install g++ cmake make).',
        { cause },
      );
    }
  }
  return loaded;
}

/** The file that `native` loads. @throws Error where there is none that fits */
export function addonFile(): string {
  return createRequire(import.meta.url)('node-gyp-build').path(packageRoot);
}

/** Rethrows what native code throws as an EspalierError, with `details` added to what it says itself. */
export function callNative<T>(call: () => T, details: ErrorDetails = {}): T {
  try {
    return call();
  } catch (error) {
    throw toEspalierError(error, details);
  }
}

/** Runs a native job; an abort of `signal` stops it and rejects with `ABORTED`, its reason as the cause. */
export async function runJob<T>(
  start: () => NativeJob<T>,
  signal?: AbortSignal,
  details: ErrorDetails = {},
): Promise<T> {
  throwIfAborted(signal);
  const job = callNative(start, details);
  const stop = () => job.cancel();
  signal?.addEventListener('abort', stop, { once: true });
  try {
    return await job.promise;
  } catch (error) {
    throwIfAborted(signal);
    throw toEspalierError(error, details);
  } finally {
    signal?.removeEventListener('abort', stop);
  }
}

function toEspalierError(error: unknown, details: ErrorDetails): unknown {
  if (!(error instanceof Error)) return error;
  const { code, tensor } = error as Error & { code?: string; tensor?: string };
  if (error instanceof EspalierError || code === undefined || !(code in errorCodes)) return error;
  return new EspalierError(code as ErrorCode, error.message, {
    ...details,
    ...(tensor === undefined ? {} : { tensor }),
    cause: error,
  });
}

function firstLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n', 1)[0] ?? '';
}
