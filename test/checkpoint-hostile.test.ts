/** One row for each kind of broken checkpoint: its code, what the error names, and that nothing big was allocated. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { basename, dirname, join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { openCheckpoint } from '../lib/checkpoint/index.ts';
import { type ErrorCode, type EspalierError, errorCodes, isEspalierError } from '../lib/errors.ts';
import { native } from '../lib/native.ts';
import { checkpointFolder, entry, rawFile, soundFile, temporaryFolder, withLength } from './support/raw-safetensors.ts';

const maxGrowth = 200 * 2 ** 20;

/** The error that `call` throws; fails if it throws none, takes over 10 s, or memory grows by 200 MB. */
function errorOf(call: () => unknown): EspalierError {
  const before = process.memoryUsage().rss;
  const start = performance.now();
  let error: unknown;
  try {
    call();
  } catch (thrown) {
    error = thrown;
  }
  const growth = process.memoryUsage().rss - before;
  expect(error, 'it must be refused').toBeDefined();
  if (!isEspalierError(error)) throw error;
  expect(performance.now() - start).toBeLessThan(10_000);
  expect(growth).toBeLessThan(maxGrowth);
  expect(error.message.length).toBeLessThan(2000);
  return error;
}

const f32x4 = { w: entry('F32', [4], 0, 16) };
const text = (fields: string) => `{"w":{${fields}}}`;
const shaped = (shape: string, offsets = '[0,0]') => text(`"dtype":"U8","shape":${shape},"data_offsets":${offsets}`);
const nested = '['.repeat(1_000_000) + ']'.repeat(1_000_000);

describe('a broken safetensors file is refused with the code of what is wrong', () => {
  const rows: [what: string, code: ErrorCode, bytes: () => Uint8Array, tensor?: string][] = [
    ['1: 0 bytes', 'HEADER_TOO_SMALL', () => new Uint8Array(0)],
    ['1: 7 bytes', 'HEADER_TOO_SMALL', () => new Uint8Array(7)],
    ['2: length 2^63', 'HEADER_TOO_LARGE', () => withLength(2n ** 63n, '{}')],
    ['2: length 2^64 - 1', 'HEADER_TOO_LARGE', () => withLength(2n ** 64n - 1n, '{}')],
    ['4: length beyond the file', 'HEADER_LENGTH', () => withLength(1000n, '{}')],
    ['5: invalid UTF-8', 'HEADER_JSON', () => rawFile(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]))],
    ['5: byte order mark', 'HEADER_JSON', () => rawFile('\ufeff{}')],
    ['5: truncated', 'HEADER_JSON', () => rawFile('{"w":{"dtype":"F32"')],
    ['5: a list', 'HEADER_JSON', () => rawFile('[]')],
    ['5: null', 'HEADER_JSON', () => rawFile('null')],
    ['6: nested 1e6 deep', 'HEADER_JSON', () => rawFile(text(`"x":${nested}`)), 'w'],
    [
      '7: name twice',
      'DUPLICATE_KEY',
      () => rawFile(`{"w":${JSON.stringify(f32x4.w)},"w":${JSON.stringify(f32x4.w)}}`, 16),
      'w',
    ],
    [
      '7: name twice, other range',
      'DUPLICATE_KEY',
      () =>
        rawFile(
          '{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
          2,
        ),
      'w',
    ],
    ['8: metadata with a number', 'METADATA', () => rawFile({ __metadata__: { a: 1 } })],
    ['8: metadata with an object', 'METADATA', () => rawFile({ __metadata__: { a: {} } })],
    ['8: metadata with null', 'METADATA', () => rawFile({ __metadata__: { a: null } })],
    ['8: metadata twice', 'METADATA', () => rawFile('{"__metadata__":{},"__metadata__":{}}')],
    ['9: name of 1 MB', 'NAME', () => rawFile({ ['n'.repeat(2 ** 20)]: entry('U8', [1], 0, 1) }, 1)],
    [
      '9: lone surrogate',
      'HEADER_JSON',
      () => rawFile('{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    ],
    ['10: unknown type', 'DTYPE', () => rawFile({ w: entry('F7', [1], 0, 1) }, 1), 'w'],
    ['10: lower-case type', 'DTYPE', () => rawFile({ w: entry('f32', [1], 0, 4) }, 4), 'w'],
    ['11: shape [-1]', 'SHAPE', () => rawFile(shaped('[-1]')), 'w'],
    ['11: shape [1.5]', 'SHAPE', () => rawFile(shaped('[1.5]')), 'w'],
    ['11: shape [1e3]', 'SHAPE', () => rawFile(shaped('[1e3]')), 'w'],
    ['11: shape ["2"]', 'SHAPE', () => rawFile(shaped('["2"]')), 'w'],
    ['11: shape [null]', 'SHAPE', () => rawFile(shaped('[null]')), 'w'],
    ['12: shape [2^62, 4]', 'OVERFLOW', () => rawFile(shaped('[4611686018427387904,4]')), 'w'],
    ['12: shape [2^40, 2^40, 0]', 'OVERFLOW', () => rawFile(shaped('[1099511627776,1099511627776,0]')), 'w'],
    ['13: offsets reversed', 'OFFSETS', () => rawFile(shaped('[1]', '[1,0]'), 1), 'w'],
    ['13: offsets negative', 'OFFSETS', () => rawFile(shaped('[1]', '[-1,0]'), 1), 'w'],
    ['13: offset 2^53 + 1', 'OFFSETS', () => rawFile(shaped('[1]', '[0,9007199254740993]'), 1), 'w'],
    ['13: offsets with a fraction', 'OFFSETS', () => rawFile(shaped('[1]', '[0.0,1.0]'), 1), 'w'],
    [
      '14: 100,000 tensors over the same bytes',
      'OFFSETS',
      () =>
        rawFile(Object.fromEntries(Array.from({ length: 100_000 }, (_, i) => [`t${i}`, entry('U8', [16], 0, 16)])), 16),
    ],
    ['15: hole', 'OFFSETS', () => rawFile({ a: entry('U8', [1], 0, 1), b: entry('U8', [1], 2, 3) }, 3), 'b'],
    ['15: first offset not 0', 'OFFSETS', () => rawFile({ w: entry('U8', [1], 1, 2) }, 2), 'w'],
    ['16: trailing bytes', 'TRAILING', () => rawFile(f32x4, 20)],
    ['16: one byte short', 'TRUNCATED', () => rawFile(f32x4, 15), 'w'],
    ['17: shape against bytes', 'SIZE', () => rawFile({ w: entry('F32', [3], 0, 16) }, 16), 'w'],
    ['18: odd number of F4', 'MISALIGNED', () => rawFile({ w: entry('F4', [3], 0, 2) }, 2), 'w'],
    ['18: 5 of F6', 'MISALIGNED', () => rawFile({ w: entry('F6_E2M3', [5], 0, 4) }, 4), 'w'],
  ];
  for (const [what, code, bytes, tensor] of rows) {
    test(what, () => {
      const folder = checkpointFolder({ 'model.safetensors': bytes() });
      const error = errorOf(() => openCheckpoint(folder));
      expect(error.code).toBe(code);
      expect(error.file).toBe(join(folder, 'model.safetensors'));
      expect(error.message).toContain(join(folder, 'model.safetensors'));
      expect(error.exitCode).toBe(2);
      if (tensor !== undefined) {
        expect(error.tensor).toBe(tensor);
        expect(error.message).toContain(tensor);
      }
    });
  }

  test('3: a header of 100,000,001 bytes that are there', () => {
    const folder = checkpointFolder({});
    const descriptor = openSync(join(folder, 'model.safetensors'), 'w');
    writeFileSync(descriptor, withLength(100_000_001n, '{}'));
    ftruncateSync(descriptor, 100_000_009);
    closeSync(descriptor);
    expect(errorOf(() => openCheckpoint(folder)).code).toBe('HEADER_TOO_LARGE');
  });

  test('3: a header of exactly 100,000,000 bytes loads', () => {
    const folder = checkpointFolder({});
    const json = Buffer.alloc(100_000_000, ' ');
    json.write(JSON.stringify(f32x4));
    writeFileSync(join(folder, 'model.safetensors'), rawFile(json, 16));
    const checkpoint = openCheckpoint(folder);
    expect([...checkpoint.names()]).toEqual(['w']);
    checkpoint.dispose();
  });
});

describe('9: hostile names are keys and nothing else', () => {
  const names = ['__proto__', 'constructor', '', '../../etc/passwd', 'a\0b', 'n'.repeat(4096), '😀'];
  test('each loads, is found, and reads back its own byte', () => {
    const entries = names.map((name, i) => `${JSON.stringify(name)}:${JSON.stringify(entry('U8', [1], i, i + 1))}`);
    const data = Uint8Array.from(names, (_, i) => i + 1);
    const folder = checkpointFolder({ 'model.safetensors': rawFile(`{${entries.join(',')}}`, data) });
    const checkpoint = openCheckpoint(folder);
    expect([...checkpoint.names()].sort()).toEqual([...names].sort());
    names.forEach((name, i) => {
      expect(checkpoint.read(name)).toEqual(Uint8Array.of(i + 1));
    });
    expect(checkpoint.has('toString')).toBe(false);
    expect(Object.prototype).not.toHaveProperty('dtype');
  });

  test('metadata keys too', () => {
    const bytes = rawFile('{"__metadata__":{"__proto__":"x","constructor":"y"}}');
    const folder = checkpointFolder({ 'model.safetensors': bytes });
    const { metadata } = native().SafetensorsFile.open(join(folder, 'model.safetensors'));
    expect(Object.entries(metadata)).toEqual([
      ['__proto__', 'x'],
      ['constructor', 'y'],
    ]);
    expect(metadata.toString).toBeUndefined();
  });
});

describe('19, 20: legal oddities load with their bytes', () => {
  const bytes = (...values: number[]) => Uint8Array.from(values);
  const rows: [what: string, file: Buffer, tensors: Record<string, Uint8Array>][] = [
    ['rank 0', rawFile({ w: entry('F32', [], 0, 4) }, bytes(1, 2, 3, 4)), { w: bytes(1, 2, 3, 4) }],
    ['a dimension of 0', rawFile({ w: entry('F32', [3, 0], 0, 0) }), { w: bytes() }],
    [
      'leading white space',
      rawFile(` \n\t${JSON.stringify({ w: entry('U8', [1], 0, 1) })}`, bytes(7)),
      { w: bytes(7) },
    ],
    [
      'header in another order than the data',
      rawFile({ b: entry('U8', [1], 1, 2), a: entry('U8', [1], 0, 1) }, bytes(5, 6)),
      { a: bytes(5), b: bytes(6) },
    ],
    [
      'data at odd addresses',
      rawFile({ a: entry('U8', [1], 0, 1), b: entry('F64', [1], 1, 9) }, bytes(9, 1, 2, 3, 4, 5, 6, 7, 8)),
      { a: bytes(9), b: bytes(1, 2, 3, 4, 5, 6, 7, 8) },
    ],
    [
      'NaN, infinity, a denormal and -0',
      rawFile({ w: entry('BF16', [4], 0, 8) }, bytes(0xc1, 0x7f, 0x80, 0x7f, 1, 0, 0, 0x80)),
      { w: bytes(0xc1, 0x7f, 0x80, 0x7f, 1, 0, 0, 0x80) },
    ],
  ];
  for (const [what, file, tensors] of rows) {
    test(what, () => {
      const checkpoint = openCheckpoint(checkpointFolder({ 'model.safetensors': file }));
      expect([...checkpoint.names()].sort()).toEqual(Object.keys(tensors));
      for (const [name, expected] of Object.entries(tensors)) expect(checkpoint.read(name)).toEqual(expected);
    });
  }
});

describe('21: a file that changes while it is in use gives CHANGED', () => {
  const size = 1 << 20;
  const rows: [what: string, change: (path: string) => void][] = [
    ['truncated', (path) => truncateSync(path, 100)],
    ['grown', (path) => truncateSync(path, 2 * size)],
    [
      'replaced by rename',
      (path) => {
        writeFileSync(`${path}.new`, rawFile({ w: entry('U8', [size], 0, size) }, size));
        renameSync(`${path}.new`, path);
      },
    ],
    ['removed', (path) => rmSync(path)],
    [
      'rewritten in place',
      (path) => {
        writeFileSync(path, rawFile({ w: entry('U8', [size], 0, size) }, new Uint8Array(size).fill(1)), { flag: 'r+' });
        utimesSync(path, new Date(), new Date(Date.now() + 5000));
      },
    ],
  ];
  for (const [what, change] of rows) {
    test(what, () => {
      const folder = checkpointFolder({ 'model.safetensors': rawFile({ w: entry('U8', [size], 0, size) }, size) });
      const path = join(folder, 'model.safetensors');
      const checkpoint = openCheckpoint(folder);
      expect(checkpoint.read('w').byteLength).toBe(size);
      change(path);
      const error = errorOf(() => checkpoint.read('w'));
      expect(error).toMatchObject({ code: 'CHANGED', file: path, tensor: 'w' });
    });
  }
});

describe('22: a shard index that does not fit the files is refused as INDEX', () => {
  const a = soundFile({ x: { dtype: 'U8', shape: [2], data: Uint8Array.of(1, 2) } });
  const b = soundFile({ y: { dtype: 'U8', shape: [1], data: Uint8Array.of(3) } });
  const indexFile = 'model.safetensors.index.json';
  const folderOf = (
    weight_map: unknown,
    metadata: unknown = {},
    more: Record<string, Uint8Array | string | object> = {},
  ) => checkpointFolder({ 'a.safetensors': a, 'b.safetensors': b, [indexFile]: { metadata, weight_map }, ...more });
  const sound = { x: 'a.safetensors', y: 'b.safetensors' };

  test('a sound one loads', () => {
    const checkpoint = openCheckpoint(folderOf(sound, { total_size: 3 }));
    expect(checkpoint.read('x')).toEqual(Uint8Array.of(1, 2));
    expect(checkpoint.read('y')).toEqual(Uint8Array.of(3));
    expect(checkpoint.get('y')).toMatchObject({ kind: 'dense', dtype: 'U8', shape: [1], file: 1 });
  });

  const rows: [what: string, folder: () => string, tensor?: string][] = [
    ['missing shard', () => folderOf({ ...sound, y: 'c.safetensors' })],
    ['absolute path', () => folderOf({ ...sound, y: '/etc/hostname' })],
    ['parent folder', () => folderOf({ ...sound, y: '../b.safetensors' })],
    ['two points', () => folderOf({ ...sound, y: '..' })],
    ['subfolder', () => folderOf({ ...sound, y: 'sub/b.safetensors' })],
    ['NUL in the path', () => folderOf({ ...sound, y: 'b.safetensors\0' })],
    ['shard that is a number', () => folderOf({ ...sound, y: 3 }), 'y'],
    ['tensor in another shard than listed', () => folderOf({ x: 'a.safetensors', y: 'a.safetensors' }), 'y'],
    ['tensor that is not there', () => folderOf({ ...sound, z: 'a.safetensors' }), 'z'],
    ['tensor that is not listed', () => folderOf({ y: 'b.safetensors', x2: 'a.safetensors' }), 'x'],
    [
      'same tensor in two shards',
      () =>
        folderOf(
          sound,
          {},
          {
            'b.safetensors': soundFile({
              y: { dtype: 'U8', shape: [1], data: Uint8Array.of(3) },
              x: { dtype: 'U8', shape: [2], data: Uint8Array.of(4, 5) },
            }),
          },
        ),
      'x',
    ],
    ['wrong total_size', () => folderOf(sound, { total_size: 4 })],
    ['total_size as text', () => folderOf(sound, { total_size: '3' })],
    ['weight_map a list', () => folderOf([])],
    ['weight_map missing', () => folderOf(undefined)],
    ['metadata a number', () => folderOf(sound, 3)],
    ['not JSON', () => folderOf(sound, {}, { [indexFile]: '{' })],
    ['invalid UTF-8', () => folderOf(sound, {}, { [indexFile]: Uint8Array.of(0x7b, 0xff, 0x7d) })],
    [
      'symbolic link out of the folder',
      () => {
        const folder = folderOf(sound);
        renameSync(join(folder, 'b.safetensors'), join(dirname(folder), 'elsewhere'));
        symlinkSync(join(dirname(folder), 'elsewhere'), join(folder, 'b.safetensors'));
        return folder;
      },
    ],
    [
      'dangling symbolic link',
      () => {
        const folder = folderOf(sound);
        rmSync(join(folder, 'b.safetensors'));
        symlinkSync('nowhere', join(folder, 'b.safetensors'));
        return folder;
      },
    ],
  ];
  for (const [what, make, tensor] of rows) {
    test(what, () => {
      const folder = make();
      const error = errorOf(() => openCheckpoint(folder));
      expect(error.code).toBe('INDEX');
      expect(error.file).toBe(join(folder, indexFile));
      if (tensor !== undefined) expect(error.tensor).toBe(tensor);
    });
  }

  test('a million entries', () => {
    const folder = folderOf(
      Object.fromEntries(Array.from({ length: 1e6 }, (_, i) => [`model.layers.${i}.weight`, 'a.safetensors'])),
    );
    expect(errorOf(() => openCheckpoint(folder)).code).toBe('INDEX');
  });

  test('a symbolic link that stays in the folder loads', () => {
    const folder = folderOf(sound);
    renameSync(join(folder, 'b.safetensors'), join(folder, 'real'));
    symlinkSync('real', join(folder, 'b.safetensors'));
    expect(openCheckpoint(folder).read('y')).toEqual(Uint8Array.of(3));
  });

  test('links into the blobs of a Hugging Face cache load, links past them do not', () => {
    const root = temporaryFolder();
    const repository = join(root, 'models--a--b');
    const snapshot = join(repository, 'snapshots', '0123abc');
    mkdirSync(snapshot, { recursive: true });
    mkdirSync(join(repository, 'blobs'));
    const link = (name: string, content: Uint8Array | string) => {
      writeFileSync(join(repository, 'blobs', `blob-${name}`), content);
      symlinkSync(`../../blobs/blob-${name}`, join(snapshot, name));
    };
    link('a.safetensors', a);
    link('b.safetensors', b);
    link('config.json', '{}');
    link(indexFile, JSON.stringify({ weight_map: sound }));
    expect(openCheckpoint(snapshot).read('y')).toEqual(Uint8Array.of(3));
    writeFileSync(join(root, 'elsewhere'), b);
    rmSync(join(snapshot, 'b.safetensors'));
    symlinkSync('../../../elsewhere', join(snapshot, 'b.safetensors'));
    expect(errorOf(() => openCheckpoint(snapshot)).code).toBe('INDEX');
  });
});

describe('config.json that is not one JSON object is refused as CONFIG', () => {
  const rows: [what: string, content: Uint8Array | string][] = [
    ['not JSON', '{"a":'],
    ['NaN', '{"rope_theta": NaN}'],
    ['a list', '[]'],
    ['invalid UTF-8', Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d)],
    ['over 16 MB', `{"a":"${'x'.repeat(17 * 2 ** 20)}"}`],
  ];
  for (const [what, content] of rows) {
    test(what, () => {
      const folder = checkpointFolder({ 'model.safetensors': rawFile({}), 'config.json': content });
      expect(errorOf(() => openCheckpoint(folder))).toMatchObject({
        code: 'CONFIG',
        file: join(folder, 'config.json'),
      });
    });
  }
  test('missing', () => {
    const folder = checkpointFolder({ 'model.safetensors': rawFile({}) });
    rmSync(join(folder, 'config.json'));
    expect(errorOf(() => openCheckpoint(folder)).code).toBe('CONFIG');
  });
  test('a sparse layout of the future', () => {
    const folder = checkpointFolder({
      'model.safetensors': rawFile({}),
      'config.json': { quantization_config: { quant_method: 'espalier', format: 'bitmask', version: 2 } },
    });
    expect(errorOf(() => openCheckpoint(folder))).toMatchObject({ code: 'CONFIG', field: 'quantization_config' });
  });
});

describe('27: pickle is refused with the way to convert it', () => {
  for (const name of ['pytorch_model.bin', 'model.pt']) {
    test(name, () => {
      const folder = checkpointFolder({ [name]: Uint8Array.of(0x80, 2) });
      for (const path of [folder, join(folder, name)]) {
        const error = errorOf(() => openCheckpoint(path));
        expect(error).toMatchObject({ code: 'PICKLE', file: join(folder, name) });
        expect(error.message).toContain('save_pretrained');
      }
    });
  }
});

describe('31: a bitmask whose parts contradict each other is refused as SPARSE naming the tensor', () => {
  const int64 = (...values: number[]) => new Uint8Array(BigInt64Array.from(values, BigInt).buffer);
  // [[1, 0, 2], [0, 0, 3]]
  const parts = {
    'm.compressed': { dtype: 'BF16', shape: [3], data: Uint8Array.of(1, 0, 2, 0, 3, 0) },
    'm.bitmask': { dtype: 'U8', shape: [2, 1], data: Uint8Array.of(0b101, 0b100) },
    'm.shape': { dtype: 'I64', shape: [2], data: int64(2, 3) },
    'm.row_offsets': { dtype: 'I64', shape: [2], data: int64(0, 2) },
  };
  type Parts = Record<string, { dtype: string; shape: number[]; data: Uint8Array }>;
  const folderOf = (tensors: Parts) =>
    checkpointFolder({
      'model.safetensors': soundFile(tensors),
      'config.json': { quantization_config: { quant_method: 'espalier', format: 'bitmask', version: 1 } },
    });

  test('a sound one reads as the dense matrix', () => {
    const checkpoint = openCheckpoint(folderOf(parts));
    checkpoint.validate();
    expect([...checkpoint.names()]).toEqual(['m.weight']);
    expect(checkpoint.get('m.weight')).toMatchObject({ kind: 'bitmask', dtype: 'BF16', shape: [2, 3] });
    expect(checkpoint.read('m.weight')).toEqual(Uint8Array.of(1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 3, 0));
  });

  const without = (name: keyof typeof parts) =>
    Object.fromEntries(Object.entries(parts).filter(([key]) => key !== name));
  const rows: [what: string, tensors: Parts, when: 'open' | 'read'][] = [
    [
      'fewer bits than values',
      { ...parts, 'm.bitmask': { ...parts['m.bitmask'], data: Uint8Array.of(0b101, 0) } },
      'read',
    ],
    [
      'more bits than values',
      { ...parts, 'm.bitmask': { ...parts['m.bitmask'], data: Uint8Array.of(0b101, 0b110) } },
      'read',
    ],
    [
      'bits in the wrong row',
      { ...parts, 'm.bitmask': { ...parts['m.bitmask'], data: Uint8Array.of(0b100, 0b101) } },
      'read',
    ],
    [
      'bits beyond the last column',
      { ...parts, 'm.bitmask': { ...parts['m.bitmask'], data: Uint8Array.of(0b101, 0b1000) } },
      'read',
    ],
    ['offsets that fall', { ...parts, 'm.row_offsets': { ...parts['m.row_offsets'], data: int64(0, -1) } }, 'read'],
    [
      'offsets that start late',
      { ...parts, 'm.row_offsets': { ...parts['m.row_offsets'], data: int64(1, 2) } },
      'read',
    ],
    [
      'offsets beyond the values',
      { ...parts, 'm.row_offsets': { ...parts['m.row_offsets'], data: int64(0, 4) } },
      'read',
    ],
    [
      'offsets beyond 2^53',
      {
        ...parts,
        'm.row_offsets': { dtype: 'I64', shape: [2], data: new Uint8Array(BigInt64Array.of(0n, 2n ** 62n).buffer) },
      },
      'read',
    ],
    ['another number of rows', { ...parts, 'm.shape': { ...parts['m.shape'], data: int64(3, 3) } }, 'open'],
    ['another number of columns', { ...parts, 'm.shape': { ...parts['m.shape'], data: int64(2, 9) } }, 'open'],
    ['a negative shape', { ...parts, 'm.shape': { ...parts['m.shape'], data: int64(-2, 3) } }, 'open'],
    [
      'an enormous shape',
      {
        ...parts,
        'm.shape': { dtype: 'I64', shape: [2], data: new Uint8Array(BigInt64Array.of(2n ** 40n, 2n ** 40n).buffer) },
      },
      'open',
    ],
    [
      'row_offsets of another length',
      { ...parts, 'm.row_offsets': { dtype: 'I64', shape: [3], data: int64(0, 2, 3) } },
      'open',
    ],
    [
      'row_offsets of another type',
      { ...parts, 'm.row_offsets': { dtype: 'I32', shape: [2], data: new Uint8Array(8) } },
      'open',
    ],
    [
      'values of another type',
      { ...parts, 'm.compressed': { dtype: 'I16', shape: [3], data: new Uint8Array(6) } },
      'open',
    ],
    [
      'more values than places',
      { ...parts, 'm.compressed': { dtype: 'BF16', shape: [7], data: new Uint8Array(14) } },
      'open',
    ],
    ['no values', without('m.compressed'), 'open'],
    ['no bitmask', without('m.bitmask'), 'open'],
    ['no shape', without('m.shape'), 'open'],
    ['no row_offsets', without('m.row_offsets'), 'open'],
    [
      'the dense matrix beside it',
      { ...parts, 'm.weight': { dtype: 'BF16', shape: [2, 3], data: new Uint8Array(12) } },
      'open',
    ],
  ];
  for (const [what, tensors, when] of rows) {
    test(what, () => {
      const folder = folderOf(tensors);
      const file = join(folder, 'model.safetensors');
      if (when === 'open') {
        expect(errorOf(() => openCheckpoint(folder))).toMatchObject({ code: 'SPARSE', tensor: 'm.weight', file });
        return;
      }
      const checkpoint = openCheckpoint(folder);
      expect(errorOf(() => checkpoint.validate())).toMatchObject({ code: 'SPARSE', tensor: 'm.weight', file });
      expect(errorOf(() => checkpoint.read('m.weight'))).toMatchObject({ code: 'SPARSE', tensor: 'm.weight', file });
    });
  }

  test('a fused tensor with an expert missing', () => {
    const fused = Object.fromEntries(
      Object.entries(parts).map(([name, part]) => [name.replace('m.', 'x.experts.up.0.'), part]),
    );
    const shape = { dtype: 'I64', shape: [3], data: int64(2, 2, 3) };
    const folder = folderOf({ ...fused, 'x.experts.up.shape': shape });
    expect(errorOf(() => openCheckpoint(folder))).toMatchObject({ code: 'SPARSE', tensor: 'x.experts.up' });
  });
});

describe('32: what is no regular file is refused without waiting', () => {
  const special: [what: string, code: ErrorCode, make: (path: string) => void | Promise<void>][] = [
    ['folder', 'NOT_A_FILE', (path) => mkdirSync(path)],
    ['FIFO', 'NOT_A_FILE', (path) => void execFileSync('mkfifo', [path])],
    ['device', 'NOT_A_FILE', (path) => symlinkSync('/dev/zero', path)],
    ['dangling link', 'NOT_A_FILE', (path) => symlinkSync('nowhere', path)],
    ['link to itself', 'NOT_A_FILE', (path) => symlinkSync(basename(path), path)],
    [
      'socket',
      'NOT_A_FILE',
      (path) =>
        new Promise((resolve, reject) => {
          const server = createServer().once('error', reject).listen(path, resolve);
          onTestFinished(() => void server.close());
        }),
    ],
  ];
  for (const [what, code, make] of special) {
    test(`${what} as model.safetensors`, async () => {
      const folder = checkpointFolder({});
      const path = join(folder, 'model.safetensors');
      await make(path);
      expect(errorOf(() => openCheckpoint(folder))).toMatchObject({ code, file: path });
    });
    if (what === 'folder') continue;
    test(`${what} as the checkpoint`, async () => {
      const path = join(temporaryFolder(), 'model');
      await make(path);
      const { code: found } = errorOf(() => openCheckpoint(path));
      expect(what === 'link to itself' ? ['IO', 'NOT_A_FILE'] : ['NOT_A_FILE']).toContain(found);
    });
    test(`${what} as config.json or index`, async () => {
      const folder = checkpointFolder({ 'model.safetensors': rawFile({}) });
      rmSync(join(folder, 'config.json'));
      await make(join(folder, 'config.json'));
      expect(['CONFIG', 'IO', 'NOT_A_FILE']).toContain(errorOf(() => openCheckpoint(folder)).code);
      renameSync(join(folder, 'model.safetensors'), join(folder, 'other'));
      await make(join(folder, 'model.safetensors.index.json'));
      expect(['INDEX', 'IO', 'NOT_A_FILE']).toContain(errorOf(() => openCheckpoint(folder)).code);
    });
  }

  test('unreadable file', () => {
    const folder = checkpointFolder({ 'model.safetensors': rawFile({}) });
    const path = join(folder, 'model.safetensors');
    chmodSync(dirname(folder), 0o755);
    chmodSync(path, 0);
    // Root reads everything, so it steps down for the moment of the test.
    const isRoot = process.geteuid!() === 0;
    if (isRoot) process.seteuid!(65534);
    try {
      expect(errorOf(() => openCheckpoint(folder))).toMatchObject({ code: 'IO', file: path, exitCode: 3 });
    } finally {
      if (isRoot) process.seteuid!(0);
    }
  });

  test('missing folder, empty folder, a file instead of a folder', () => {
    const folder = temporaryFolder();
    expect(errorOf(() => openCheckpoint(join(folder, 'nothing'))).code).toBe('NOT_A_FILE');
    expect(errorOf(() => openCheckpoint(folder)).code).toBe('NOT_A_FILE');
    writeFileSync(join(folder, 'model.safetensors'), rawFile({}));
    const error = errorOf(() => openCheckpoint(join(folder, 'model.safetensors')));
    expect(error.code).toBe('NOT_A_FILE');
    expect(error.message).toContain('folder');
  });
});

describe('the native handle', () => {
  test('refuses use after dispose, foreign receivers and bad ranges', () => {
    const folder = checkpointFolder({ 'model.safetensors': rawFile(f32x4, 16) });
    const file = native().SafetensorsFile.open(join(folder, 'model.safetensors'));
    for (const [begin, end] of [
      [0, 1e9],
      [-1, 1],
      [2, 1],
      [0.5, 1],
      [NaN, 1],
      ['0', 1],
    ]) {
      expect(() => file.read(begin as number, end as number)).toThrow(expect.objectContaining({ code: 'USAGE' }));
    }
    expect(() => file.read.call({} as typeof file, 0, 1)).toThrow();
    expect(() => native().SafetensorsFile.open(3 as unknown as string)).toThrow(
      expect.objectContaining({ code: 'USAGE' }),
    );
    file.dispose();
    file.dispose();
    expect(() => file.read(0, 1)).toThrow(expect.objectContaining({ code: 'DISPOSED' }));
  });

  test('knows only codes that lib/errors.ts has', () => {
    const codes = native().errorCodes();
    expect(codes.length).toBeGreaterThan(20);
    for (const code of codes) expect(Object.keys(errorCodes)).toContain(code);
  });
});
