import { mkdir, open } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { throwIfAborted } from '../abort.ts';
import { fromSystemError } from '../errors.ts';
import { AtomicFile } from './atomic-file.ts';
import { pieceBytes } from './tensor.ts';

/** Copies files between folders, durably. `files` are relative paths; subfolders are made. */
export async function copyFiles(
  from: string,
  to: string,
  files: readonly string[],
  signal?: AbortSignal,
): Promise<void> {
  for (const file of files) {
    throwIfAborted(signal);
    await copyFile(join(from, file), join(to, file), signal);
  }
}

async function copyFile(source: string, target: string, signal: AbortSignal | undefined): Promise<void> {
  await mkdir(dirname(target), { recursive: true });
  const copy = await AtomicFile.create(target);
  try {
    const input = await open(source, 'r').catch((error) => Promise.reject(fromSystemError(error, 'read', source)));
    try {
      const buffer = new Uint8Array(pieceBytes);
      for (;;) {
        throwIfAborted(signal);
        const { bytesRead } = await input.read(buffer, 0, buffer.byteLength, null);
        if (bytesRead === 0) break;
        await copy.write(buffer.subarray(0, bytesRead));
      }
    } finally {
      await input.close();
    }
    await copy.commit();
  } catch (error) {
    await copy.discard();
    throw fromSystemError(error, 'copy', source);
  }
}
