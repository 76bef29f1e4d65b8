/** Writes safetensors files: streamed to a temporary name, flushed, renamed. */

import { throwIfAborted } from '../abort.ts';
import { EspalierError } from '../errors.ts';
import { AtomicFile } from './atomic-file.ts';
import { alignmentRank, tensorBytes } from './dtype.ts';
import { pieceBytes, type TensorSource, type TensorToWrite } from './tensor.ts';

const maxHeaderBytes = 100_000_000;

export interface WriteOptions {
  metadata?: Readonly<Record<string, string>> | undefined;
  /** The data begins at a multiple of so many bytes, a multiple of 8 itself. @default 8 */
  alignment?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Called with the number of tensor bytes that were just written. */
  onBytes?: ((bytes: number) => void) | undefined;
}

/**
 * Writes `tensors`, those of the widest types first and then by name, so that every one is aligned to its type. What stood
 * at `path` stays until the new file is whole. Throws `SIZE` for a tensor whose bytes do not match its shape,
 * `DUPLICATE_KEY`, `NO_SPACE`, `IO` and `ABORTED`; then no temporary file is left.
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorToWrite[],
  options: WriteOptions = {},
): Promise<void> {
  const sorted = [...tensors].sort(
    (a, b) => alignmentRank(b.dtype) - alignmentRank(a.dtype) || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
  );
  const header = headerOf(path, sorted, options.metadata, options.alignment);
  const file = await AtomicFile.create(path);
  try {
    await file.write(header);
    for (const tensor of sorted) await writeTensor(file, tensor, options);
    throwIfAborted(options.signal);
    await file.commit();
  } catch (error) {
    await file.discard();
    throw error;
  }
}

/** The bytes of the file that are not tensor data. */
export function headerBytes(tensors: readonly TensorToWrite[], metadata?: Readonly<Record<string, string>>): number {
  return headerOf('', tensors, metadata).byteLength;
}

/** A source as a tensor to write, read in pieces. */
export function copyOf(source: TensorSource): TensorToWrite {
  const byteLength = tensorBytes(source.dtype, source.shape);
  return {
    name: source.name,
    dtype: source.dtype,
    shape: source.shape,
    byteLength,
    async *data() {
      for (let begin = 0; begin < byteLength; begin += pieceBytes) {
        yield await source.read(begin, Math.min(byteLength, begin + pieceBytes));
      }
    },
  };
}

async function writeTensor(file: AtomicFile, tensor: TensorToWrite, { signal, onBytes }: WriteOptions): Promise<void> {
  let written = 0;
  const write = async (piece: Uint8Array) => {
    throwIfAborted(signal);
    await file.write(piece);
    written += piece.byteLength;
    onBytes?.(piece.byteLength);
  };
  const data = tensor.data();
  if (Symbol.asyncIterator in data) for await (const piece of data) await write(piece);
  else await write(await data);
  if (written !== tensor.byteLength) throw sizeError(file.path, tensor, `its data has ${written} bytes`);
}

function headerOf(
  path: string,
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>> | undefined,
  alignment = 8,
): Uint8Array {
  const entries: string[] = [];
  if (metadata !== undefined && Object.keys(metadata).length > 0)
    entries.push(`"__metadata__":${JSON.stringify(metadata)}`);
  const names = new Set(['__metadata__']);
  let offset = 0;
  for (const tensor of tensors) {
    const { name, dtype, shape, byteLength } = tensor;
    if (names.has(name)) {
      throw new EspalierError(
        'DUPLICATE_KEY',
        `${path} cannot hold tensor ${JSON.stringify(name)}: the name is taken`,
        {
          file: path,
          tensor: name,
        },
      );
    }
    names.add(name);
    if (byteLength !== tensorBytes(dtype, shape)) throw sizeError(path, tensor, `byteLength is ${byteLength}`);
    const end = offset + byteLength;
    entries.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [offset, end] })}`);
    offset = end;
  }
  const json = Buffer.from(`{${entries.join(',')}}`);
  const length = Math.ceil((8 + json.byteLength) / alignment) * alignment - 8;
  if (length > maxHeaderBytes) {
    throw new EspalierError('HEADER_TOO_LARGE', `${path} would need a header of ${length} bytes; use more shards`, {
      file: path,
    });
  }
  const header = Buffer.alloc(8 + length, ' ');
  header.writeBigUInt64LE(BigInt(length));
  json.copy(header, 8);
  return header;
}

function sizeError(path: string, { name, dtype, shape }: TensorToWrite, found: string): EspalierError {
  return new EspalierError(
    'SIZE',
    `${path}: tensor ${JSON.stringify(name)} is ${dtype} [${shape}], ${tensorBytes(dtype, shape)} bytes, but ${found}`,
    { file: path, tensor: name },
  );
}
