/** Broken safetensors files: the code of each refusal, what the error names, and that nothing big was allocated. */
import { closeSync, ftruncateSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../lib/checkpoint/index.ts';
import { type ErrorCode, errorCodes } from '../lib/errors.ts';
import { native } from '../lib/native.ts';
import { checkpointFolder, entry, rawFile, withLength } from './support/raw-safetensors.ts';
import { errorOf } from './support/refusal.ts';

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
