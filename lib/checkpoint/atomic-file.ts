/**
 * Files that appear whole or not at all: written beside their final name, flushed to the disk, renamed, and the rename
 * itself flushed. A file that somebody has mapped is never truncated, because its old bytes stay with the old inode.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readdirSync, rmSync } from 'node:fs';
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fromSystemError } from '../errors.ts';

const temporaryName = /\.tmp-\d+-[0-9a-f]+$/;

/** One file being written under a temporary name. Call `commit` to give it its name, or `discard`. */
export class AtomicFile {
  readonly path: string;
  readonly #temporary: string;
  readonly #handle: FileHandle;

  private constructor(path: string, temporary: string, handle: FileHandle) {
    this.path = path;
    this.#temporary = temporary;
    this.#handle = handle;
  }

  static async create(path: string): Promise<AtomicFile> {
    const temporary = `${path}.tmp-${process.pid}-${randomBytes(6).toString('hex')}`;
    try {
      return new AtomicFile(path, temporary, await open(temporary, 'wx', 0o666));
    } catch (error) {
      throw fromSystemError(error, 'write', path);
    }
  }

  /** Appends all of `bytes`; the system may take them in several pieces. */
  async write(bytes: Uint8Array): Promise<void> {
    try {
      for (let done = 0; done < bytes.byteLength; ) {
        const { bytesWritten } = await this.#handle.write(bytes, done, bytes.byteLength - done);
        done += bytesWritten;
      }
    } catch (error) {
      throw fromSystemError(error, 'write', this.path);
    }
  }

  async commit(): Promise<void> {
    try {
      await this.#handle.sync();
      await this.#handle.close();
      await rename(this.#temporary, this.path);
      syncDirectory(dirname(this.path));
    } catch (error) {
      throw fromSystemError(error, 'write', this.path);
    }
  }

  /** Removes the temporary file; harmless after `commit`. */
  async discard(): Promise<void> {
    await this.#handle.close().catch(() => {});
    await rm(this.#temporary, { force: true }).catch(() => {});
  }
}

/** Writes a whole file atomically and durably. Throws `NO_SPACE` or `IO`, leaving what was at `path` as it was. */
export async function writeFileAtomic(path: string, content: Uint8Array | string): Promise<void> {
  const file = await AtomicFile.create(path);
  try {
    await file.write(typeof content === 'string' ? Buffer.from(content) : content);
    await file.commit();
  } catch (error) {
    await file.discard();
    throw error;
  }
}

/** Makes renames and new names inside a folder durable. */
export function syncDirectory(path: string): void {
  const descriptor = openSync(path, 'r');
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** Removes the temporary files that a killed process left anywhere under `folder`. */
export function removeTemporaryFiles(folder: string): void {
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (entry.isFile() && temporaryName.test(entry.name)) rmSync(join(entry.parentPath, entry.name), { force: true });
  }
}
