import { callNative, type NativeSafetensorsFile, native } from '../native.ts';
import { tensorBytes } from './dtype.ts';
import type { PackedTensor, TensorSource } from './tensor.ts';

/**
 * A packed tensor read as dense elements of the type that it was packed from: the very ones for bf16 and f32, otherwise
 * the weights that int8 and int4 stand for, rounded to that type. Holds one unpacked matrix at a time.
 */
export class PackedSource implements TensorSource {
  readonly name: string;
  readonly dtype: PackedTensor['dtype'];
  readonly shape: PackedTensor['shape'];
  readonly #tensor: PackedTensor;
  readonly #files: readonly NativeSafetensorsFile[];
  readonly #paths: readonly string[];
  #held: { readonly piece: number; readonly bytes: Uint8Array } | undefined;

  constructor(tensor: PackedTensor, files: readonly NativeSafetensorsFile[], paths: readonly string[]) {
    this.name = tensor.name;
    this.dtype = tensor.dtype;
    this.shape = tensor.shape;
    this.#tensor = tensor;
    this.#files = files;
    this.#paths = paths;
  }

  read(begin: number, end: number): Uint8Array {
    const out = new Uint8Array(end - begin);
    let first = 0;
    for (const [index, { rows, cols }] of this.#tensor.pieces.entries()) {
      const last = first + tensorBytes(this.dtype, [rows, cols]);
      const [from, to] = [Math.max(begin, first), Math.min(end, last)];
      if (from < to) out.set(this.#unpack(index).subarray(from - first, to - first), from - begin);
      first = last;
    }
    return out;
  }

  #unpack(piece: number): Uint8Array {
    if (this.#held?.piece !== piece) {
      const { file, begin, end } = this.#tensor.pieces[piece]!;
      const details = { file: this.#paths[file]!, tensor: this.name };
      this.#held = { piece, bytes: callNative(() => native().packedRead(this.#files[file]!, begin, end), details) };
    }
    return this.#held.bytes;
  }
}
