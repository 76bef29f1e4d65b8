import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  openCheckpoint,
  type TensorToWrite,
  toFloat32,
  writeFileAtomic,
  writeSafetensors,
} from '../lib/checkpoint/index.ts';
import { checkpointFolder, rawFile, temporaryFolder } from './support/raw-safetensors.ts';

const tensor = (name: string, dtype: TensorToWrite['dtype'], shape: number[], data: Uint8Array): TensorToWrite => ({
  name,
  dtype,
  shape,
  byteLength: data.byteLength,
  data: () => data,
});

function headerOf(file: Buffer): { json: string; data: Buffer } {
  const length = Number(file.readBigUInt64LE(0));
  return { json: file.subarray(8, 8 + length).toString(), data: file.subarray(8 + length) };
}

describe('a written safetensors file', () => {
  const bytes = (n: number, first: number) => Uint8Array.from({ length: n }, (_, i) => first + i);

  test('starts with a brace, is padded to 8 bytes, and orders tensors by width, then name', async () => {
    const path = join(temporaryFolder(), 'x.safetensors');
    await writeSafetensors(
      path,
      [
        tensor('c', 'U8', [3], bytes(3, 1)),
        tensor('b', 'BF16', [2], bytes(4, 10)),
        tensor('a', 'BF16', [1], bytes(2, 20)),
        tensor('z', 'I64', [1], bytes(8, 30)),
        tensor('e', 'F32', [0, 4], bytes(0, 0)),
      ],
      { metadata: { format: 'pt' } },
    );
    const { json, data } = headerOf(readFileSync(path));
    // Written out by hand from the format's description.
    expect(json.trimEnd()).toBe(
      '{"__metadata__":{"format":"pt"},"z":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},' +
        '"e":{"dtype":"F32","shape":[0,4],"data_offsets":[8,8]},"a":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]},' +
        '"b":{"dtype":"BF16","shape":[2],"data_offsets":[10,14]},"c":{"dtype":"U8","shape":[3],"data_offsets":[14,17]}}',
    );
    expect(json).toMatch(/^\{.*\} *$/);
    expect((8 + json.length) % 8).toBe(0);
    expect([...data]).toEqual([...bytes(8, 30), ...bytes(2, 20), ...bytes(4, 10), ...bytes(3, 1)]);
  });

  test('reads back through the reader, from promises and pieces, with hostile names', async () => {
    const folder = checkpointFolder({});
    const names = ['__proto__', '', 'a\0"\\\n😀', 'x'];
    const tensors = names.map((name, i): TensorToWrite => {
      const data = bytes(10, 10 * i);
      return {
        ...tensor(name, 'U8', [10], data),
        data: [
          () => data,
          () => Promise.resolve(data),
          async function* () {
            yield data.subarray(0, 3);
            yield data.subarray(3);
          },
        ][i % 3]!,
      };
    });
    await writeSafetensors(join(folder, 'model.safetensors'), tensors);
    const checkpoint = openCheckpoint(folder);
    expect([...checkpoint.names()].sort()).toEqual([...names].sort());
    names.forEach((name, i) => {
      expect(checkpoint.read(name)).toEqual(bytes(10, 10 * i));
    });
  });

  test('is the file that safetensors itself wrote for the same tensors', async () => {
    const source = openCheckpoint(new URL('../models/demo', import.meta.url).pathname);
    const folder = temporaryFolder();
    for (const [i, name] of source.fileNames.entries()) {
      const tensors = source.files[i]!.tensors.map((t) =>
        tensor(t.name, t.dtype as TensorToWrite['dtype'], t.shape, source.read(t.name)),
      );
      await writeSafetensors(join(folder, name), tensors.reverse(), { metadata: source.files[i]!.metadata });
      expect(readFileSync(join(folder, name)).equals(readFileSync(join(source.dir, name)))).toBe(true);
    }
  });
});

describe('a write that fails leaves what was there and no temporary file', () => {
  const rows: [what: string, code: string, tensors: TensorToWrite[]][] = [
    [
      'data shorter than promised',
      'SIZE',
      [{ ...tensor('w', 'U8', [4], new Uint8Array(4)), data: () => new Uint8Array(3) }],
    ],
    [
      'data longer than promised',
      'SIZE',
      [{ ...tensor('w', 'U8', [4], new Uint8Array(4)), data: () => new Uint8Array(5) }],
    ],
    ['shape against bytes', 'SIZE', [tensor('w', 'F32', [4], new Uint8Array(4))]],
    [
      'a name twice',
      'DUPLICATE_KEY',
      [tensor('w', 'U8', [1], new Uint8Array(1)), tensor('w', 'U8', [1], new Uint8Array(1))],
    ],
    ['the name of the metadata', 'DUPLICATE_KEY', [tensor('__metadata__', 'U8', [1], new Uint8Array(1))]],
  ];
  for (const [what, code, tensors] of rows) {
    test(what, async () => {
      const folder = temporaryFolder();
      const path = join(folder, 'model.safetensors');
      writeFileSync(path, 'old');
      await expect(writeSafetensors(path, tensors)).rejects.toMatchObject({ code, file: path });
      expect(readdirSync(folder)).toEqual(['model.safetensors']);
      expect(readFileSync(path, 'utf8')).toBe('old');
    });
  }

  test('a source that throws passes its own error on', async () => {
    const folder = temporaryFolder();
    const failing = { ...tensor('w', 'U8', [4], new Uint8Array(4)), data: () => Promise.reject(new Error('mine')) };
    await expect(writeSafetensors(join(folder, 'x'), [failing])).rejects.toThrow('mine');
    expect(readdirSync(folder)).toEqual([]);
  });

  test('an abort between pieces', async () => {
    const folder = temporaryFolder();
    const controller = new AbortController();
    const data = async function* () {
      yield new Uint8Array(2);
      controller.abort();
      yield new Uint8Array(2);
    };
    const aborted = writeSafetensors(join(folder, 'x'), [{ ...tensor('w', 'U8', [4], new Uint8Array(4)), data }], {
      signal: controller.signal,
    });
    await expect(aborted).rejects.toMatchObject({ code: 'ABORTED', exitCode: 4 });
    expect(readdirSync(folder)).toEqual([]);
  });

  test('a missing folder', async () => {
    const path = join(temporaryFolder(), 'nothing', 'x');
    await expect(writeFileAtomic(path, 'text')).rejects.toMatchObject({ code: 'NOT_A_FILE', file: path });
  });
});

test('a file that is open keeps its old bytes when it is written anew', async () => {
  const path = join(temporaryFolder(), 'x');
  await writeFileAtomic(path, 'old');
  const descriptor = openSync(path, 'r');
  await writeFileAtomic(path, 'newer');
  const buffer = Buffer.alloc(10);
  expect(buffer.toString('utf8', 0, readSync(descriptor, buffer))).toBe('old');
  closeSync(descriptor);
  expect(readFileSync(path, 'utf8')).toBe('newer');
});

test('files to copy are everything but weights and config, in subfolders too', () => {
  const folder = checkpointFolder({
    'model.safetensors': rawFile({}),
    'other.safetensors': rawFile({}),
    'pytorch_model.bin': 'x',
    'model.gguf': 'x',
    'tokenizer.json': '{}',
    'README.md': 'x',
  });
  for (const name of ['assets', '.git']) {
    mkdirSync(join(folder, name));
    writeFileSync(join(folder, name, 'config.json'), 'x');
  }
  expect(openCheckpoint(folder).otherFiles()).toEqual(['README.md', 'assets/config.json', 'tokenizer.json']);
  expect(existsSync(join(folder, '.git'))).toBe(true);
});

test('floats are read exactly, also from an odd address', () => {
  const shifted = (...bytes: number[]) => Uint8Array.from([0, ...bytes]).subarray(1);
  // 1, -2, infinity, NaN, -0
  expect(toFloat32(shifted(0x80, 0x3f, 0, 0xc0, 0x80, 0x7f, 0xc0, 0x7f, 0, 0x80), 'BF16')).toEqual(
    Float32Array.of(1, -2, Infinity, NaN, -0),
  );
  // 1, -2, smallest denormal, largest, infinity
  expect(toFloat32(shifted(0, 0x3c, 0, 0xc0, 1, 0, 0xff, 0x7b, 0, 0x7c), 'F16')).toEqual(
    Float32Array.of(1, -2, 2 ** -24, 65504, Infinity),
  );
  expect(toFloat32(shifted(0, 0, 0x80, 0x3f), 'F32')).toEqual(Float32Array.of(1));
});
