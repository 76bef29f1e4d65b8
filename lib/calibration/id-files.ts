import { open } from 'node:fs/promises';
import { fromSystemError } from '../errors.ts';
import { dataError } from './data-error.ts';

/** Most ids read from one file: 1 GiB in memory. */
const maxIds = 2 ** 28;

/**
 * Reads raw token ids, little-endian, without any header.
 * @param bytesPerId 2 for .u16, 4 for .u32.
 * @param limit Read at most so many ids, from the beginning.
 */
export async function readIdFile(file: string, size: number, bytesPerId: 2 | 4, limit: number): Promise<Uint32Array> {
  if (size % bytesPerId !== 0) {
    const advice =
      bytesPerId === 2
        ? 'it is cut short, or holds 32-bit ids (.u32) or text'
        : 'it is cut short, or holds 16-bit ids (.u16) or text';
    throw dataError(file, `has ${size} bytes, which is no multiple of the ${bytesPerId} bytes of an id`, advice);
  }
  const count = Math.min(size / bytesPerId, limit);
  if (count > maxIds) throw dataError(file, `has ${count} ids, at most ${maxIds} are read`, 'split it');
  const bytes = new Uint8Array(count * bytesPerId);
  const handle = await open(file).catch((error: unknown) => {
    throw fromSystemError(error, 'open', file);
  });
  try {
    for (let done = 0; done < bytes.length; ) {
      const { bytesRead } = await handle.read(bytes, done, bytes.length - done, done);
      if (bytesRead === 0)
        throw dataError(file, `ended after ${done} of ${bytes.length} bytes`, 'it changed while it was read');
      done += bytesRead;
    }
  } catch (error) {
    throw fromSystemError(error, 'read', file);
  } finally {
    await handle.close();
  }
  // Espalier runs on x64 and arm64, which are little-endian as the files are.
  return bytesPerId === 2 ? Uint32Array.from(new Uint16Array(bytes.buffer)) : new Uint32Array(bytes.buffer);
}
