import type { DType } from './dtype.ts';

/** Bytes [begin, end) of the checkpoint's file number `file`. */
export interface ByteRange {
  readonly file: number;
  readonly begin: number;
  readonly end: number;
}

/** A tensor stored as its elements in row-major order. */
export interface DenseTensor extends ByteRange {
  readonly kind: 'dense';
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/** A matrix stored as its kept elements and a mask of where they stand (see sparse-layout.ts). */
export interface BitmaskTensor {
  readonly kind: 'bitmask';
  readonly name: string;
  readonly dtype: DType;
  /** `[rows, columns]` of the matrix. */
  readonly shape: readonly [number, number];
  /** The kept elements, row after row. */
  readonly values: ByteRange;
  /** `rows × ceil(columns / 8)` bytes; column c is bit c & 7 of byte c >> 3. */
  readonly bitmask: ByteRange;
  /** `rows` 64-bit integers: how many elements are kept before each row. */
  readonly rowOffsets: ByteRange;
}

/** A fused `[experts, rows, columns]` tensor stored matrix by matrix. */
export interface FusedTensor {
  readonly kind: 'fused';
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly [number, number, number];
  readonly experts: readonly BitmaskTensor[];
}

/** A matrix as it lies in memory while the model runs (see packed-layout.ts). */
export interface PackedPiece extends ByteRange {
  readonly rows: number;
  readonly cols: number;
  /** Type of the elements that were packed. */
  readonly dtype: DType;
  /** For example `bitmap int8`. */
  readonly format: string;
  /** Where these rows lie in a fused tensor. */
  readonly slice: { readonly expert: number; readonly row: number } | undefined;
}

/** A matrix, or a fused tensor piece by piece in row-major order. */
export interface PackedTensor {
  readonly kind: 'packed';
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly pieces: readonly PackedPiece[];
}

/** How a checkpoint stores a tensor; name, type and shape are those of the dense one in every case. */
export type CheckpointTensor = DenseTensor | BitmaskTensor | FusedTensor | PackedTensor;

/** A dense tensor that can be read in pieces, wherever it comes from. */
export interface TensorSource {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Bytes [begin, end) of the dense tensor. */
  read(begin: number, end: number): Uint8Array | Promise<Uint8Array>;
}

/** A tensor for writeSafetensors. */
export interface TensorToWrite {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** The bytes, at once or in pieces. */
  data(): Uint8Array | Promise<Uint8Array> | AsyncIterable<Uint8Array>;
}

/** Pieces of this many bytes are read and written at a time. */
export const pieceBytes = 8 * 2 ** 20;
