/**
 * Every error that Espalier raises on purpose carries one of these codes. `exit` is the exit status of the command line:
 * 1 a bug of ours, 2 bad input or usage, 3 input/output, 4 interrupted and resumable.
 * The codes that native code can return are listed in native/core/status.h under the same names.
 */
export const errorCodes = {
  HEADER_TOO_SMALL: { exit: 2, means: 'a safetensors file shorter than its 8-byte length field' },
  HEADER_TOO_LARGE: { exit: 2, means: 'a safetensors header above 100,000,000 bytes' },
  HEADER_LENGTH: { exit: 2, means: 'a safetensors header that runs past the end of the file' },
  HEADER_JSON: { exit: 2, means: 'a safetensors header that is not the JSON it must be' },
  DUPLICATE_KEY: { exit: 2, means: 'a name that stands twice in a safetensors header' },
  METADATA: { exit: 2, means: '`__metadata__` that is not a map from string to string' },
  NAME: { exit: 2, means: 'a tensor name above 4 KB' },
  DTYPE: { exit: 2, means: 'an element type that safetensors does not define' },
  SHAPE: { exit: 2, means: 'a shape that is not a list of non-negative integers' },
  OVERFLOW: { exit: 2, means: 'a shape whose number of elements does not fit 64 bits' },
  OFFSETS: { exit: 2, means: 'tensors that overlap, leave holes, or lie outside the file' },
  TRAILING: { exit: 2, means: 'bytes after the last tensor' },
  TRUNCATED: { exit: 2, means: 'a file that ends before its last tensor' },
  SIZE: { exit: 2, means: 'a tensor whose bytes do not match its shape and type' },
  MISALIGNED: { exit: 2, means: 'a sub-byte tensor that does not fill whole bytes' },
  NOT_A_FILE: { exit: 2, means: 'a checkpoint path that is missing or is not a regular file' },
  CHANGED: { exit: 2, means: 'a checkpoint file that changed while it was in use' },
  SPARSE: { exit: 2, means: 'a bitmask tensor whose parts contradict each other' },
  INDEX: { exit: 2, means: 'a shard index that does not fit the files beside it' },
  PICKLE: { exit: 2, means: 'a checkpoint stored as pickle, which is never loaded' },
  CONFIG: { exit: 2, means: 'a config.json field that is wrong, or asks for what Espalier does not implement' },
  MISMATCH: { exit: 2, means: 'tensors that do not fit what config.json says' },
  TOKENIZER: { exit: 2, means: 'a tokenizer or chat template that cannot be used' },
  DATA: { exit: 2, means: 'calibration or evaluation data that cannot be used' },
  RECIPE: { exit: 2, means: 'a recipe file that cannot be used' },
  USAGE: { exit: 2, means: 'an option or argument that is not allowed' },
  NONFINITE: { exit: 2, means: 'NaN or infinity in the weights' },
  CONTEXT_FULL: { exit: 2, means: 'a sequence longer than the model or the KV cache allows' },
  OUTPUT: { exit: 2, means: 'an output folder that cannot be written to without losing something' },
  LOCKED: { exit: 2, means: 'another run is writing to the same output' },
  RESUME: { exit: 2, means: 'an unfinished run that does not belong to these options' },
  DISPOSED: { exit: 2, means: 'use of an object after it was disposed' },
  ABORTED: { exit: 4, means: 'stopped by an AbortSignal or Ctrl-C' },
  IO: { exit: 3, means: 'a file operation that the system refused' },
  NO_SPACE: { exit: 3, means: 'not enough room on the disk' },
  OUT_OF_MEMORY: { exit: 3, means: 'not enough memory' },
  DEVICE: { exit: 3, means: 'a GPU that was asked for and is not there, or that failed' },
  NATIVE: { exit: 3, means: 'the native addon cannot be loaded' },
  INTERNAL: { exit: 1, means: 'a bug in Espalier' },
} as const satisfies Record<string, { exit: 1 | 2 | 3 | 4; means: string }>;

export type ErrorCode = keyof typeof errorCodes;

export interface ErrorDetails {
  /** The file the error is about. */
  file?: string;
  /** The tensor the error is about. */
  tensor?: string;
  /** The configuration field, option or parameter the error is about. */
  field?: string;
  cause?: unknown;
}

/** The one error class of the library: what is wrong, where, and what to do stand in `message`. */
export class EspalierError extends Error {
  override readonly name = 'EspalierError';
  readonly code: ErrorCode;
  readonly file: string | undefined;
  readonly tensor: string | undefined;
  readonly field: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.file = details.file;
    this.tensor = details.tensor;
    this.field = details.field;
  }

  /** The exit status that the command line ends with on this error. */
  get exitCode(): number {
    return errorCodes[this.code].exit;
  }
}

export function isEspalierError(value: unknown): value is EspalierError {
  return value instanceof EspalierError;
}

/** Turns what Node's file functions throw into `NO_SPACE`, `NOT_A_FILE` or `IO` with the path named. */
export function fromSystemError(error: unknown, doing: string, file: string): EspalierError {
  if (error instanceof EspalierError) return error;
  const { code } = error as NodeJS.ErrnoException;
  const details = { file, cause: error };
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new EspalierError('NO_SPACE', `cannot ${doing} ${file}: no space left on the disk`, details);
  }
  if (code === 'ENOENT' || code === 'EISDIR' || code === 'ENOTDIR') {
    return new EspalierError('NOT_A_FILE', `cannot ${doing} ${file}: ${describe(code)}`, details);
  }
  return new EspalierError(
    'IO',
    `cannot ${doing} ${file}: ${error instanceof Error ? error.message : String(error)}`,
    details,
  );
}

function describe(code: 'ENOENT' | 'EISDIR' | 'ENOTDIR'): string {
  return { ENOENT: 'it does not exist', EISDIR: 'it is a folder', ENOTDIR: 'a part of the path is not a folder' }[code];
}
