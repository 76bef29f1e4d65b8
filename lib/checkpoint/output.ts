/**
 * The folder that a run writes. All work goes to `<output>.partial`, and one rename at the end gives it its name, so what
 * stands at the output is at every moment either the old checkpoint, the new one, or nothing; never half of one.
 *
 * Beside the output stand, while a run lives: `<output>.lock` (see lock-file.ts), `<output>.partial`, and for a moment
 * during the final swap `<output>.espalier-old`, which the next run puts back or removes if the swap was cut short.
 */
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
} from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { EspalierError, fromSystemError } from '../errors.ts';
import { removeTemporaryFiles, syncDirectory } from './atomic-file.ts';
import { LockFile } from './lock-file.ts';

export interface OutputFolderOptions {
  /** The folder to make. Its parents are made too. */
  output: string;
  /** The folder that is read; the output may not be, hold or lie in it. */
  input?: string | undefined;
  /** Replace a checkpoint that stands at the output, and discard an unfinished run. @default false */
  overwrite?: boolean | undefined;
  /** Go on in the partial folder of an unfinished run where there is one. @default false */
  resume?: boolean | undefined;
  /** Whether this kind of run can be resumed at all; only the message about an unfinished run depends on it. @default true */
  resumable?: boolean | undefined;
}

/** An output folder that this process holds the lock of, from `open` to `finish` or `release`. */
export class OutputFolder {
  /** The final path, absolute and with symbolic links resolved. */
  readonly output: string;
  /** The folder to write into until `finish`. */
  readonly partial: string;
  /** Whether `partial` holds what an earlier run wrote. */
  readonly resumed: boolean;
  readonly #lock: LockFile;
  readonly #overwrite: boolean;

  private constructor(output: string, resumed: boolean, lock: LockFile, overwrite: boolean) {
    this.output = output;
    this.partial = `${output}.partial`;
    this.resumed = resumed;
    this.#lock = lock;
    this.#overwrite = overwrite;
  }

  /**
   * Throws what `open` would, and `NO_SPACE` unless `bytes` fit on the disk, without writing anything. What another run
   * does meanwhile, or a permission that only an attempt would show, is not foreseen.
   */
  static check(options: OutputFolderOptions, bytes: number): string {
    const { overwrite = false, resume = false } = options;
    const output = checkedOutput(options);
    try {
      checkReplaceable(output, overwrite);
      LockFile.requireFree(`${output}.lock`);
      const hasPartial = checkPartial(output, options);
      const parent = nearestFolder(dirname(output));
      accessSync(parent, constants.W_OK | constants.X_OK);
      if (!(hasPartial && resume)) requireRoom(output, parent, bytes);
    } catch (error) {
      throw fromSystemError(error, 'make the output folder', output);
    }
    return output;
  }

  /**
   * Checks the paths, takes the lock and makes (or with `resume` reopens) the partial folder.
   * Throws `OUTPUT` for a place that cannot be written to without losing something, `LOCKED`, `NO_SPACE` or `IO`.
   */
  static open(options: OutputFolderOptions): OutputFolder {
    const { overwrite = false } = options;
    const output = checkedOutput(options);
    const partial = `${output}.partial`;
    let lock: LockFile | undefined;
    try {
      checkReplaceable(output, overwrite);
      mkdirSync(dirname(output), { recursive: true });
      lock = LockFile.acquire(`${output}.lock`);
      undoCutSwap(output);
      checkReplaceable(output, overwrite);
      const resumed = checkPartial(output, options);
      if (resumed) removeTemporaryFiles(partial);
      else rmSync(partial, { recursive: true, force: true });
      mkdirSync(partial, { recursive: true });
      syncDirectory(dirname(output));
      return new OutputFolder(output, resumed, lock, overwrite);
    } catch (error) {
      lock?.release();
      throw fromSystemError(error, 'make the output folder', output);
    }
  }

  /** Removes what a run left beside its output that was killed after the output had its name. Throws `LOCKED`, `IO`. */
  static tidy(path: string): void {
    const output = canonical(path);
    const lock = LockFile.acquire(`${output}.lock`);
    try {
      undoCutSwap(output);
    } finally {
      lock.release();
    }
  }

  /** Throws `NO_SPACE`, naming both numbers, unless the output's disk has room for `bytes` more. */
  requireSpace(bytes: number): void {
    requireRoom(this.output, this.partial, bytes);
  }

  /** Gives the partial folder its final name, replacing an old output only now, and releases the lock. */
  async finish(): Promise<void> {
    if (!this.#lock.isHeld) {
      throw new EspalierError('LOCKED', `the lock ${this.#lock.path} was taken away while this run was writing`, {
        file: this.#lock.path,
      });
    }
    const old = oldName(this.output);
    try {
      checkReplaceable(this.output, this.#overwrite);
      syncDirectory(this.partial);
      const replaces = existsSync(this.output);
      if (replaces) await rename(this.output, old);
      await rename(this.partial, this.output);
      syncDirectory(dirname(this.output));
      if (replaces) await rm(old, { recursive: true, force: true });
    } catch (error) {
      undoCutSwap(this.output);
      throw fromSystemError(error, 'finish', this.output);
    }
    this.release();
  }

  /** Removes the partial folder and releases the lock: nothing of this run stays. Harmless after `finish`. */
  discard(): void {
    // Without the lock the partial folder may be another run's.
    if (this.#lock.isHeld) rmSync(this.partial, { recursive: true, force: true });
    this.release();
  }

  /** Releases the lock and keeps the partial folder for `resume`. Harmless after `finish`. */
  release(): void {
    this.#lock.release();
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/** Absolute path with the symbolic links of its existing part resolved. */
function canonical(path: string): string {
  const absolute = resolve(path);
  try {
    return realpathSync(absolute);
  } catch {
    const parent = dirname(absolute);
    return parent === absolute ? absolute : join(canonical(parent), basename(absolute));
  }
}

/** The output's path, if it is one that can be written to without touching the input. */
function checkedOutput(options: OutputFolderOptions): string {
  const output = canonical(options.output);
  if (basename(output) === '') throw outputError(output, 'the root of the file system cannot be an output folder');
  if (options.input !== undefined) checkApart(canonical(options.input), output);
  return output;
}

/** Whether the partial folder of an unfinished run is there to be gone on with. */
function checkPartial(output: string, options: OutputFolderOptions): boolean {
  const { overwrite = false, resume = false, resumable = true } = options;
  const partial = `${output}.partial`;
  const found = statSync(partial, { throwIfNoEntry: false });
  if (found !== undefined && !found.isDirectory()) {
    throw outputError(output, `${partial}, where it would be prepared, exists and is not a folder`);
  }
  if (found !== undefined && !resume && !overwrite) {
    throw outputError(
      output,
      `an unfinished run is in ${partial}: pass ${resumable ? '--resume to continue it or ' : ''}--overwrite to discard it`,
    );
  }
  return found !== undefined && resume;
}

function requireRoom(output: string, folder: string, bytes: number): void {
  const { bavail, bsize } = statfsSync(folder);
  const available = bavail * bsize;
  if (bytes <= available) return;
  throw new EspalierError(
    'NO_SPACE',
    `not enough room for ${output}: ${bytes} bytes are needed and ${available} bytes are available on its disk`,
    { file: output },
  );
}

/** The path itself or the first of its parents that exists. */
function nearestFolder(path: string): string {
  return existsSync(path) || dirname(path) === path ? path : nearestFolder(dirname(path));
}

function checkApart(input: string, output: string): void {
  if (input === output) throw outputError(output, 'the output is the input itself; choose another folder');
  if (isInside(output, input)) {
    throw outputError(output, `the output lies inside the input ${input}; choose another folder`);
  }
  for (const written of [output, `${output}.partial`, oldName(output)]) {
    if (input === written || isInside(input, written)) {
      throw outputError(
        output,
        `the input ${input} lies inside ${written}, which would be replaced; choose another folder`,
      );
    }
  }
}

function isInside(path: string, folder: string): boolean {
  return path.startsWith(folder.endsWith(sep) ? folder : folder + sep);
}

/** A folder that holds something is replaced only when asked, and only if it looks like a checkpoint. */
function checkReplaceable(output: string, overwrite: boolean): void {
  const found = statSync(output, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isDirectory()) throw outputError(output, 'it exists and is not a folder');
  const names = readdirSync(output);
  if (names.length === 0) return;
  if (!overwrite) throw outputError(output, 'it exists and is not empty; pass --overwrite to replace it');
  if (!names.includes('config.json') && !names.includes('espalier.json')) {
    throw outputError(
      output,
      'it holds no config.json, so it is not a checkpoint and --overwrite does not replace it; choose another folder',
    );
  }
}

function oldName(output: string): string {
  return `${output}.espalier-old`;
}

/** After a swap that was cut short: the old output returns to its place, or goes if the new one is already there. */
function undoCutSwap(output: string): void {
  const old = oldName(output);
  if (!existsSync(old)) return;
  if (existsSync(output)) rmSync(old, { recursive: true, force: true });
  else renameSync(old, output);
}

function outputError(output: string, problem: string): EspalierError {
  return new EspalierError('OUTPUT', `cannot write to ${output}: ${problem}`, { file: output });
}
