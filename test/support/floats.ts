/** Elements of stored tensors as numbers. */
import type { HeldTensor } from './checkpoints.ts';

export function floatsOf({ dtype, bytes }: HeldTensor): Float64Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (dtype === 'F32') return Float64Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(i * 4, true));
  const decode = dtype === 'BF16' ? fromBf16 : fromF16;
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => decode(view.getUint16(i * 2, true)));
}

function fromBf16(bits: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, bits << 16);
  return view.getFloat32(0);
}

function fromF16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return exponent === 0x1f ? (fraction ? Number.NaN : sign / 0) : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Rows of a matrix. */
export function rowsOf(tensor: HeldTensor): Float64Array[] {
  const values = floatsOf(tensor);
  const cols = tensor.shape.at(-1)!;
  return Array.from({ length: values.length / cols }, (_, row) => values.subarray(row * cols, (row + 1) * cols));
}

export function product(rows: readonly ArrayLike<number>[], x: ArrayLike<number>): number[] {
  return rows.map((row) => {
    let sum = 0;
    for (let i = 0; i < row.length; i++) sum += row[i]! * x[i]!;
    return sum;
  });
}
