/** Makes safetensors bytes by hand, sound or not, independently of the library's writer. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';

export function withLength(length: bigint, rest: Uint8Array | string): Buffer {
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(length);
  return Buffer.concat([prefix, Buffer.from(rest as string)]);
}

/** A file from header text (or an object to print) and as many data bytes, or the data itself. */
export function rawFile(header: string | Uint8Array | object, data: number | Uint8Array = 0): Buffer {
  const isText = typeof header === 'string' || header instanceof Uint8Array;
  const json = isText ? Buffer.from(header as string) : Buffer.from(JSON.stringify(header));
  return Buffer.concat([
    withLength(BigInt(json.byteLength), json),
    typeof data === 'number' ? Buffer.alloc(data) : data,
  ]);
}

export function entry(dtype: string, shape: number[], begin: number, end: number) {
  return { dtype, shape, data_offsets: [begin, end] };
}

/** Concatenates named tensors into one sound file. */
export function soundFile(tensors: Record<string, { dtype: string; shape: number[]; data: Uint8Array }>): Buffer {
  const header: Record<string, unknown> = {};
  const parts: Uint8Array[] = [];
  let offset = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    header[name] = entry(dtype, shape, offset, offset + data.byteLength);
    offset += data.byteLength;
    parts.push(data);
  }
  return rawFile(header, Buffer.concat(parts));
}

/** A folder that is removed when the test ends. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'espalier-test-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A checkpoint folder with these files; objects are written as JSON. */
export function checkpointFolder(files: Record<string, Uint8Array | string | object>): string {
  const folder = join(temporaryFolder(), 'checkpoint');
  mkdirSync(folder);
  for (const [name, content] of Object.entries({ 'config.json': {}, ...files })) {
    const isRaw = typeof content === 'string' || content instanceof Uint8Array;
    writeFileSync(join(folder, name), isRaw ? (content as string | Uint8Array) : JSON.stringify(content));
  }
  return folder;
}
