/** Folders of anything but sound files: the code of each refusal, what the error names, and that nothing big was allocated. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  mkdirSync,
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
import type { ErrorCode } from '../lib/errors.ts';
import { checkpointFolder, entry, rawFile, temporaryFolder } from './support/raw-safetensors.ts';
import { errorOf } from './support/refusal.ts';

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
