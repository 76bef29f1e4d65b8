/** Bitmasks that contradict themselves: the code of each refusal, what the error names, and that nothing big was allocated. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../lib/checkpoint/index.ts';
import { checkpointFolder, soundFile } from './support/raw-safetensors.ts';
import { errorOf } from './support/refusal.ts';

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
