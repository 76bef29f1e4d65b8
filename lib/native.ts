/** The one file that knows the addon's shape and how it is loaded. */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { type ErrorCode, type ErrorDetails, EspalierError, errorCodes } from './errors.ts';

/** A tensor as a safetensors header describes it. */
export interface NativeTensor {
  readonly name: string;
  /** safetensors name of the element type, for example `BF16`. */
  readonly dtype: string;
  readonly shape: number[];
  /** Byte range in the file, counted from the start of the file. */
  readonly begin: number;
  readonly end: number;
}

/** A safetensors file mapped for reading. */
export interface NativeSafetensorsFile {
  readonly tensors: NativeTensor[];
  readonly metadata: Record<string, string>;
  readonly size: number;
  /** A copy of bytes [begin, end). Throws `CHANGED` if the file is no longer what was opened. */
  read(begin: number, end: number): Uint8Array;
  dispose(): void;
}

export interface NativeAddon {
  readonly SafetensorsFile: { open(path: string): NativeSafetensorsFile };
  /** The codes that native code can return; equal to a subset of lib/errors.ts. */
  errorCodes(): string[];
}

const packageRoot = fileURLToPath(new URL('..', import.meta.url));
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

/** Rethrows what native code throws as an EspalierError, with `details` added to what it says itself. */
export function callNative<T>(call: () => T, details: ErrorDetails = {}): T {
  try {
    return call();
  } catch (error) {
    throw toEspalierError(error, details);
  }
}

/** The same for a native call that returns a promise. */
export async function awaitNative<T>(call: () => Promise<T>, details: ErrorDetails = {}): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw toEspalierError(error, details);
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
