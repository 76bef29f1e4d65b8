import { callNative, type NativeSafetensorsFile } from '../native.ts';
import { checkMask, checkOffsets, maskBytes, unpackRows } from './bitmask.ts';
import { elementBytes, sparseError } from './sparse-layout.ts';
import { type BitmaskTensor, type ByteRange, pieceBytes, type TensorSource } from './tensor.ts';

/** A bitmask matrix read as the dense one, rows at a time; everything read is checked (`SPARSE`) before it is used. */
export class BitmaskSource implements TensorSource {
  readonly name: string;
  readonly dtype: BitmaskTensor['dtype'];
  readonly shape: BitmaskTensor['shape'];
  readonly #tensor: BitmaskTensor;
  readonly #files: readonly NativeSafetensorsFile[];
  readonly #paths: readonly string[];
  readonly #width: 2 | 4;
  #offsets: Float64Array | undefined;

  constructor(tensor: BitmaskTensor, files: readonly NativeSafetensorsFile[], paths: readonly string[]) {
    this.name = tensor.name;
    this.dtype = tensor.dtype;
    this.shape = tensor.shape;
    this.#tensor = tensor;
    this.#files = files;
    this.#paths = paths;
    this.#width = elementBytes(tensor);
  }

  get byteLength(): number {
    return this.shape[0] * this.#rowBytes;
  }

  read(begin: number, end: number): Uint8Array {
    if (begin >= end) return new Uint8Array(0);
    const rowBytes = this.#rowBytes;
    const first = Math.floor(begin / rowBytes);
    const rows = this.#readRows(first, Math.ceil(end / rowBytes));
    return rows.subarray(begin - first * rowBytes, end - first * rowBytes);
  }

  /** Checks offsets and masks of the whole matrix without reading its values. */
  validate(): void {
    const [rows, columns] = this.shape;
    const step = Math.max(1, Math.floor(pieceBytes / Math.max(1, maskBytes(columns))));
    this.#readOffsets();
    for (let first = 0; first < rows; first += step) this.#readMask(first, Math.min(rows, first + step));
  }

  #readRows(first: number, last: number): Uint8Array {
    const offsets = this.#readOffsets();
    const mask = this.#readMask(first, last);
    const values = this.#readBytes(this.#tensor.values, offsets[first]! * this.#width, offsets[last]! * this.#width);
    return unpackRows(values, mask, this.shape[1], this.#width);
  }

  /** Row offsets with the total at the end. */
  #readOffsets(): Float64Array {
    if (this.#offsets === undefined) {
      const { values, rowOffsets } = this.#tensor;
      const total = (values.end - values.begin) / this.#width;
      const bytes = this.#readBytes(rowOffsets, 0, rowOffsets.end - rowOffsets.begin);
      const stored = new BigInt64Array(bytes.buffer);
      const problem = checkOffsets(stored, total);
      if (problem !== undefined) throw sparseError(problem, this.name, this.#paths[rowOffsets.file]!);
      this.#offsets = Float64Array.from({ length: stored.length + 1 }, (_, row) => Number(stored[row] ?? total));
    }
    return this.#offsets;
  }

  #readMask(first: number, last: number): Uint8Array {
    const { bitmask } = this.#tensor;
    const columns = this.shape[1];
    const mask = this.#readBytes(bitmask, first * maskBytes(columns), last * maskBytes(columns));
    const problem = checkMask(mask, columns, this.#readOffsets(), first);
    if (problem !== undefined) throw sparseError(problem, this.name, this.#paths[bitmask.file]!);
    return mask;
  }

  #readBytes(range: ByteRange, begin: number, end: number): Uint8Array {
    const file = this.#paths[range.file]!;
    return callNative(() => this.#files[range.file]!.read(range.begin + begin, range.begin + end), {
      file,
      tensor: this.name,
    });
  }

  get #rowBytes(): number {
    return this.shape[1] * this.#width;
  }
}

/** Matrices that follow one another in one fused tensor. */
export class FusedSource implements TensorSource {
  readonly name: string;
  readonly dtype: BitmaskTensor['dtype'];
  readonly shape: readonly number[];
  readonly #experts: readonly BitmaskSource[];

  constructor(name: string, experts: readonly BitmaskSource[]) {
    this.name = name;
    this.dtype = experts[0]!.dtype;
    this.shape = [experts.length, ...experts[0]!.shape];
    this.#experts = experts;
  }

  read(begin: number, end: number): Uint8Array {
    const size = this.#experts[0]!.byteLength;
    const out = new Uint8Array(end - begin);
    for (let at = begin; at < end; ) {
      const expert = Math.floor(at / size);
      const stop = Math.min(end, (expert + 1) * size);
      out.set(this.#experts[expert]!.read(at - expert * size, stop - expert * size), at - begin);
      at = stop;
    }
    return out;
  }

  validate(): void {
    for (const expert of this.#experts) expert.validate();
  }
}
