/**
 * Writes GGUF files, version 3: a header of typed metadata and tensor descriptions, then the tensors, each padded to 32
 * bytes. Tensors are written as they are made, so a file may be larger than memory.
 */
import { AtomicFile } from '../../dist/checkpoint/atomic-file.js';

const alignment = 32;

/** Number in the file, elements of a block, bytes of a block. */
const tensorTypes = {
  F32: { id: 0, elements: 1, bytes: 4 },
  Q4_0: { id: 2, elements: 32, bytes: 18 },
  BF16: { id: 30, elements: 1, bytes: 2 },
};

/** Number of a metadata type in the file, and how a value is written. */
const valueTypes = {
  u32: { id: 4, encode: (value) => integer(value, 4) },
  f32: { id: 6, encode: (value) => Buffer.from(Float32Array.of(value).buffer) },
  string: { id: 8, encode: text },
  strings: { id: 9, encode: texts },
};

/**
 * @typedef {object} GgufTensor
 * @property {string} name
 * @property {'F32' | 'BF16' | 'Q4_0'} type Q4_0 needs a multiple of 32 columns
 * @property {readonly number[]} shape row-major, columns last
 * @property {() => AsyncIterable<Uint8Array>} data the rows in order, encoded
 */

/**
 * Writes a file that appears under its name only when it is complete.
 * @param {string} path
 * @param {ReadonlyArray<readonly [key: string, type: keyof typeof valueTypes, value: number | string | string[]]>} metadata
 * @param {readonly GgufTensor[]} tensors
 * @returns {Promise<number>} bytes of the file
 * @throws {RangeError} for a tensor whose data has another size than its shape, or whose rows are no whole blocks
 */
export async function writeGguf(path, metadata, tensors) {
  const header = headerOf(metadata, tensors);
  const file = await AtomicFile.create(path);
  try {
    await file.write(header);
    let total = header.byteLength;
    for (const tensor of tensors) {
      const size = bytesOf(tensor);
      let written = 0;
      for await (const piece of tensor.data()) {
        await file.write(piece);
        written += piece.byteLength;
      }
      if (written !== size) throw new RangeError(`${tensor.name}: ${written} bytes of data, its shape needs ${size}`);
      await file.write(new Uint8Array(aligned(size) - size));
      total += aligned(size);
    }
    await file.commit();
    return total;
  } catch (error) {
    await file.discard();
    throw error;
  }
}

function headerOf(metadata, tensors) {
  const parts = [Buffer.from('GGUF'), integer(3, 4), integer(tensors.length, 8), integer(metadata.length, 8)];
  for (const [key, type, value] of metadata) {
    parts.push(text(key), integer(valueTypes[type].id, 4), valueTypes[type].encode(value));
  }
  let offset = 0;
  for (const tensor of tensors) {
    const { name, type, shape } = tensor;
    // The file counts dimensions from the innermost one.
    const dimensions = shape.toReversed().map((size) => integer(size, 8));
    parts.push(text(name), integer(shape.length, 4), ...dimensions);
    parts.push(integer(tensorTypes[type].id, 4), integer(offset, 8));
    offset += aligned(bytesOf(tensor));
  }
  const header = Buffer.concat(parts);
  return Buffer.concat([header], aligned(header.byteLength));
}

function bytesOf({ name, type, shape }) {
  const { elements, bytes } = tensorTypes[type];
  if (shape.at(-1) % elements !== 0) {
    throw new RangeError(`${name}: rows of ${shape.at(-1)} elements are no multiple of ${elements}, as ${type} needs`);
  }
  return (shape.reduce((product, size) => product * size, 1) / elements) * bytes;
}

function aligned(bytes) {
  return Math.ceil(bytes / alignment) * alignment;
}

function text(value) {
  const bytes = Buffer.from(value);
  return Buffer.concat([integer(bytes.byteLength, 8), bytes]);
}

function texts(values) {
  return Buffer.concat([integer(valueTypes.string.id, 4), integer(values.length, 8), ...values.map(text)]);
}

function integer(value, bytes) {
  const buffer = Buffer.alloc(bytes);
  if (bytes === 8) buffer.writeBigUInt64LE(BigInt(value));
  else buffer.writeUInt32LE(value);
  return buffer;
}
