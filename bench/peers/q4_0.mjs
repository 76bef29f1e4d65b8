/**
 * Q4_0: 32 weights in 18 bytes, a float16 scale d and 32 numbers q of four bits, each weight d · (q − 8). Byte i of the 16
 * holds number i in its low half and number 16 + i in its high half. The weight of largest magnitude becomes q = 0, exactly
 * −8 d, so the scale has the opposite sign; the others are rounded to nearest.
 */
const blockElements = 32;
const blockBytes = 18;

/**
 * @param {Float32Array} values whole rows, each a multiple of 32 long
 * @returns {Uint8Array} 18 bytes for each 32 values
 */
export function encodeQ4_0(values) {
  const out = new Uint8Array((values.length / blockElements) * blockBytes);
  const quantise = (value, inverse) => Math.min(15, Math.trunc(Math.fround(Math.fround(value * inverse) + 8.5)));
  for (let first = 0, at = 0; first < values.length; first += blockElements, at += blockBytes) {
    let largest = 0;
    for (let i = first; i < first + blockElements; i++) {
      if (Math.abs(values[i]) > Math.abs(largest)) largest = values[i];
    }
    const scale = largest / -8;
    // The numbers are rounded with the scale before it is rounded itself.
    const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
    const half = toHalf(scale);
    out[at] = half & 0xff;
    out[at + 1] = half >> 8;
    for (let i = 0; i < blockElements / 2; i++) {
      const low = quantise(values[first + i], inverse);
      const high = quantise(values[first + blockElements / 2 + i], inverse);
      out[at + 2 + i] = low | (high << 4);
    }
  }
  return out;
}

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);

/** The bits of the nearest float16, ties to even. */
export function toHalf(value) {
  float[0] = Math.abs(value);
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const bits = word[0];
  if (bits >= 0x477ff000) return sign | 0x7c00;
  if (bits < 0x38800000) {
    // Subnormal: 2^-24 is one. Adding 2^-1 leaves float32 just the bits that float16 has, rounded by the addition.
    float[0] += 0.5;
    return sign | (word[0] - 0x3f000000);
  }
  const rounded = bits + 0xfff + ((bits >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}
