/** Shard indexes that do not fit the files: the code of each refusal, what the error names, and that nothing big was allocated. */
import { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../lib/checkpoint/index.ts';
import { checkpointFolder, soundFile, temporaryFolder } from './support/raw-safetensors.ts';
import { errorOf } from './support/refusal.ts';

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
