/**
 * Rows of a matrix ↔ kept elements and a bit for each column. An element is kept when its bit pattern is not +0, so that
 * −0, NaN payloads and everything else come back bit for bit. Column c is bit c & 7 of byte c >> 3 of its row's mask;
 * bits beyond the last column are 0. All functions take whole rows of 2- or 4-byte little-endian elements.
 */

export type ElementBytes = 2 | 4;

/** Bytes of the mask of one row. */
export function maskBytes(columns: number): number {
  return Math.ceil(columns / 8);
}

/** 1 unless the bits are all 0, without a branch: which elements are kept is random, so a branch would be mispredicted. */
function isKept(element: number): number {
  return (element | -element) >>> 31;
}

/** How many elements each row keeps. */
export function countKept(bytes: Uint8Array, columns: number, width: ElementBytes): Uint32Array {
  const elements = view(bytes, width);
  const counts = new Uint32Array(columns === 0 ? 0 : elements.length / columns);
  for (let row = 0, i = 0; row < counts.length; row++) {
    let count = 0;
    for (const end = i + columns; i < end; i++) count += isKept(elements[i]!);
    counts[row] = count;
  }
  return counts;
}

/** The kept elements in order. */
export function packValues(bytes: Uint8Array, width: ElementBytes): Uint8Array {
  const elements = view(bytes, width);
  const kept = width === 2 ? new Uint16Array(elements.length) : new Uint32Array(elements.length);
  let count = 0;
  for (let i = 0; i < elements.length; i++) {
    const element = elements[i]!;
    kept[count] = element;
    count += isKept(element);
  }
  return new Uint8Array(kept.buffer, 0, count * width);
}

/** The masks of the rows, one after another. */
export function packMask(bytes: Uint8Array, columns: number, width: ElementBytes): Uint8Array {
  const elements = view(bytes, width);
  const rows = columns === 0 ? 0 : elements.length / columns;
  const mask = new Uint8Array(rows * maskBytes(columns));
  for (let row = 0, i = 0, out = 0; row < rows; row++) {
    for (let column = 0; column < columns; column += 8) {
      const bits = Math.min(8, columns - column);
      let byte = 0;
      for (let bit = 0; bit < bits; bit++) byte |= isKept(elements[i++]!) << bit;
      mask[out++] = byte;
    }
  }
  return mask;
}

/** The inverse of packValues and packMask. The mask must have been checked against the values (see checkMask). */
export function unpackRows(values: Uint8Array, mask: Uint8Array, columns: number, width: ElementBytes): Uint8Array {
  const kept = view(values, width);
  const rowMask = maskBytes(columns);
  const rows = rowMask === 0 ? 0 : mask.length / rowMask;
  const elements = width === 2 ? new Uint16Array(rows * columns) : new Uint32Array(rows * columns);
  let next = 0;
  for (let row = 0; row < rows; row++) {
    for (let k = 0; k < rowMask; k++) {
      const first = row * columns + k * 8;
      for (let byte = mask[row * rowMask + k]!; byte !== 0; byte &= byte - 1) {
        elements[first + 31 - Math.clz32(byte & -byte)] = kept[next++]!;
      }
    }
  }
  return new Uint8Array(elements.buffer);
}

const bitsSet = Uint8Array.from({ length: 256 }, (_, byte) => {
  let count = 0;
  for (let rest = byte; rest !== 0; rest &= rest - 1) count++;
  return count;
});

/**
 * What is wrong with the masks of rows `first`, `first + 1`, …, undefined if nothing: bits beyond the last column, or a
 * row with another number of bits than `offsets` (row offsets, with the total at the end) says.
 */
export function checkMask(mask: Uint8Array, columns: number, offsets: Float64Array, first: number): string | undefined {
  const rowMask = maskBytes(columns);
  const rows = rowMask === 0 ? 0 : mask.length / rowMask;
  const padding = columns % 8 === 0 ? 0 : (0xff << (columns % 8)) & 0xff;
  for (let row = 0, i = 0; row < rows; row++) {
    let count = 0;
    for (const end = i + rowMask; i < end; i++) count += bitsSet[mask[i]!]!;
    if ((mask[i - 1]! & padding) !== 0) {
      return `bitmask row ${first + row} sets bits beyond column ${columns - 1}`;
    }
    const expected = offsets[first + row + 1]! - offsets[first + row]!;
    if (count !== expected) {
      return `bitmask row ${first + row} keeps ${count} elements, but row_offsets and compressed say ${expected}`;
    }
  }
  return undefined;
}

/** What is wrong with stored row offsets, undefined if nothing. `total` is the number of kept elements. */
export function checkOffsets(offsets: BigInt64Array, total: number): string | undefined {
  let previous = 0n;
  for (let row = 0; row < offsets.length; row++) {
    const offset = offsets[row]!;
    if (row === 0 && offset !== 0n) return `row_offsets start at ${offset} instead of 0`;
    if (offset < previous) return `row_offsets fall from ${previous} to ${offset} at row ${row}`;
    if (offset > total) return `row_offsets reach ${offset} at row ${row}, but compressed has ${total} elements`;
    previous = offset;
  }
  return undefined;
}

/** A view of the elements, of a copy where the bytes do not start at a multiple of their width. */
function view(bytes: Uint8Array, width: ElementBytes): Uint16Array | Uint32Array {
  const aligned = bytes.byteOffset % width === 0 ? bytes : bytes.slice();
  const count = aligned.byteLength / width;
  return width === 2
    ? new Uint16Array(aligned.buffer, aligned.byteOffset, count)
    : new Uint32Array(aligned.buffer, aligned.byteOffset, count);
}
