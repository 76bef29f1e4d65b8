/** Turns dense matrices into the stored tensors of sparse-layout.ts, never holding a whole matrix. */

import { throwIfAborted } from '../abort.ts';
import { EspalierError } from '../errors.ts';
import { countKept, maskBytes, packMask, packValues } from './bitmask.ts';
import { bytesOf, type FloatDType, isFloatDType, tensorBytes } from './dtype.ts';
import { bitmaskBytes, isPartName, moduleOf } from './sparse-layout.ts';
import { pieceBytes, type TensorSource, type TensorToWrite } from './tensor.ts';
import { copyOf } from './writer.ts';

export interface EncodeOptions {
  signal?: AbortSignal | undefined;
  /** Called with the number of bytes that were just read. */
  onBytes?: ((bytes: number) => void) | undefined;
}

/**
 * How a tensor is stored in a sparse checkpoint: as a bitmask where it is a BF16, F16 or F32 matrix named `….weight`, or
 * a fused `[experts, rows, columns]` tensor, and that is smaller; unchanged otherwise. Reads the source once here to
 * count, and twice when the result is written.
 */
export async function encodeSparse(source: TensorSource, options: EncodeOptions = {}): Promise<TensorToWrite[]> {
  if (isPartName(source.name)) {
    throw new EspalierError(
      'SPARSE',
      `tensor ${JSON.stringify(source.name)} cannot be saved sparse: that layout uses names ending in this for itself`,
      { tensor: source.name },
    );
  }
  const dense = [copyOf(source)];
  const { dtype, shape } = source;
  const module = moduleOf(source.name);
  const isFused = shape.length === 3;
  if (!isFloatDType(dtype) || shape.includes(0) || !(isFused || (shape.length === 2 && module !== undefined)))
    return dense;
  const [experts, rows, columns] = isFused ? (shape as [number, number, number]) : [1, shape[0]!, shape[1]!];
  const counts = await countRows(source, experts * rows, columns, dtype, options);
  const matrices = Array.from({ length: experts }, (_, expert): Matrix => {
    const first = expert * rows;
    return { source, dtype, columns, first, counts: counts.subarray(first, first + rows) };
  });
  const bytes = matrices.reduce((sum, { counts }) => sum + bitmaskBytes(dtype, rows, columns, total(counts)), 0);
  if (bytes >= tensorBytes(dtype, shape)) return dense;
  if (!isFused) return storedParts(matrices[0]!, module!);
  return [
    int64Tensor(`${source.name}.shape`, shape),
    ...matrices.flatMap((matrix, expert) => storedParts(matrix, `${source.name}.${expert}`)),
  ];
}

/** Some rows of a source, with how many elements each keeps. */
interface Matrix {
  source: TensorSource;
  dtype: FloatDType;
  columns: number;
  first: number;
  counts: Uint32Array;
}

function storedParts(matrix: Matrix, module: string): TensorToWrite[] {
  const { dtype, columns, counts } = matrix;
  const width = bytesOf(dtype);
  const rows = counts.length;
  const kept = total(counts);
  return [
    {
      name: `${module}.compressed`,
      dtype,
      shape: [kept],
      byteLength: kept * width,
      async *data() {
        for await (const piece of rowPieces(matrix)) yield packValues(piece, width);
      },
    },
    {
      name: `${module}.bitmask`,
      dtype: 'U8',
      shape: [rows, maskBytes(columns)],
      byteLength: rows * maskBytes(columns),
      async *data() {
        for await (const piece of rowPieces(matrix)) yield packMask(piece, columns, width);
      },
    },
    int64Tensor(`${module}.shape`, [rows, columns]),
    { ...int64Tensor(`${module}.row_offsets`, { length: rows }), data: () => int64Bytes(exclusiveSums(counts)) },
  ];
}

function int64Tensor(name: string, values: ArrayLike<number>): TensorToWrite {
  return { name, dtype: 'I64', shape: [values.length], byteLength: values.length * 8, data: () => int64Bytes(values) };
}

function int64Bytes(values: ArrayLike<number>): Uint8Array {
  return new Uint8Array(BigInt64Array.from({ length: values.length }, (_, i) => BigInt(values[i]!)).buffer);
}

function exclusiveSums(counts: Uint32Array): Float64Array {
  const sums = new Float64Array(counts.length);
  for (let row = 1; row < counts.length; row++) sums[row] = sums[row - 1]! + counts[row - 1]!;
  return sums;
}

function total(counts: Uint32Array): number {
  let sum = 0;
  for (const count of counts) sum += count;
  return sum;
}

async function countRows(
  source: TensorSource,
  rows: number,
  columns: number,
  dtype: FloatDType,
  { signal, onBytes }: EncodeOptions,
): Promise<Uint32Array> {
  const counts = new Uint32Array(rows);
  let row = 0;
  for await (const piece of rowPieces({ source, dtype, columns, first: 0, counts })) {
    throwIfAborted(signal);
    const found = countKept(piece, columns, bytesOf(dtype));
    counts.set(found, row);
    row += found.length;
    onBytes?.(piece.byteLength);
  }
  return counts;
}

/** The dense bytes of the matrix, whole rows at a time. */
async function* rowPieces({ source, dtype, columns, first, counts }: Matrix): AsyncGenerator<Uint8Array> {
  const rowBytes = columns * bytesOf(dtype);
  const step = Math.max(1, Math.floor(pieceBytes / rowBytes));
  for (let row = 0; row < counts.length; row += step) {
    const last = Math.min(counts.length, row + step);
    yield await source.read((first + row) * rowBytes, (first + last) * rowBytes);
  }
}
