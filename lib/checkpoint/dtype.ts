/** The element types of safetensors in the order of increasing alignment that the format declares, with their bits. */
const bits = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

export type DType = keyof typeof bits;

const order = new Map(Object.keys(bits).map((name, index) => [name, index]));

export function isDType(name: string): name is DType {
  return order.has(name);
}

/** Position in the format's order; a writer puts the highest first. */
export function alignmentRank(dtype: DType): number {
  return order.get(dtype)!;
}

/** Bytes of a whole tensor; a fraction when a packed type does not fill its last byte. */
export function tensorBytes(dtype: DType, shape: readonly number[]): number {
  return (shape.reduce((product, dimension) => product * dimension, 1) * bits[dtype]) / 8;
}

/** The types that Espalier computes with and prunes. */
export type FloatDType = 'BF16' | 'F16' | 'F32';

export function isFloatDType(dtype: string): dtype is FloatDType {
  return dtype === 'BF16' || dtype === 'F16' || dtype === 'F32';
}

export function bytesOf(dtype: FloatDType): 2 | 4 {
  return dtype === 'F32' ? 4 : 2;
}

/** Converts little-endian BF16, F16 or F32 elements to float32, exactly. */
export function toFloat32(bytes: Uint8Array, dtype: FloatDType): Float32Array {
  const width = bytesOf(dtype);
  const count = bytes.byteLength / width;
  // A view needs an aligned start, which a slice of a file need not have.
  const aligned = bytes.byteOffset % width === 0 ? bytes : bytes.slice();
  if (dtype === 'F32') return new Float32Array(aligned.buffer, aligned.byteOffset, count).slice();
  const halves = new Uint16Array(aligned.buffer, aligned.byteOffset, count);
  const floats = new Float32Array(count);
  if (dtype === 'BF16') {
    const words = new Uint32Array(floats.buffer);
    for (let i = 0; i < count; i++) words[i] = halves[i]! << 16;
  } else {
    for (let i = 0; i < count; i++) floats[i] = halfToFloat(halves[i]!);
  }
  return floats;
}

function halfToFloat(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
}
