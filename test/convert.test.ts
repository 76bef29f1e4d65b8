import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { countKept, packMask, packValues, unpackRows } from '../lib/checkpoint/bitmask.ts';
import {
  convertCheckpoint,
  markSparse,
  openCheckpoint,
  type TensorToWrite,
  unmarkSparse,
  writeSafetensors,
} from '../lib/checkpoint/index.ts';
import { checkpointFolder, soundFile, temporaryFolder } from './support/raw-safetensors.ts';

const demo = new URL('../models/demo', import.meta.url).pathname;

const sha = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** Name, type, shape and bytes of every tensor, read through the library. */
function contents(dir: string): Map<string, string> {
  const checkpoint = openCheckpoint(dir);
  const found = [...checkpoint.names()].map((name): [string, string] => {
    const { dtype, shape } = checkpoint.get(name);
    return [name, `${dtype} [${shape}] ${sha(checkpoint.read(name))}`];
  });
  checkpoint.dispose();
  return new Map(found.sort(([a], [b]) => (a < b ? -1 : 1)));
}

function filesOf(dir: string): Record<string, string> {
  return Object.fromEntries(
    readdirSync(dir)
      .sort()
      .map((name) => [name, sha(readFileSync(join(dir, name)))]),
  );
}

/** A copy of the demo model with half of each expert matrix set to zero, negative zero and NaN among what stays. */
async function prunedDemo(): Promise<string> {
  const dir = join(temporaryFolder(), 'pruned');
  cpSync(demo, dir, { recursive: true });
  const source = openCheckpoint(demo);
  let changed = 0;
  for (const [i, file] of source.fileNames.entries()) {
    const tensors = source.files[i]!.tensors.map((tensor): TensorToWrite => {
      const bytes = source.read(tensor.name);
      if (tensor.name.includes('.experts.')) {
        const words = new Uint16Array(bytes.buffer);
        for (let k = 0; k < words.length; k++) if ((k * 2654435761) % 4294967296 < 2147483648) words[k] = 0;
        words[1] = 0x8000;
        words[2] = 0x7fc1;
        changed++;
      }
      const { name, dtype, shape } = tensor;
      return { name, dtype: dtype as TensorToWrite['dtype'], shape, byteLength: bytes.byteLength, data: () => bytes };
    });
    await writeSafetensors(join(dir, file), tensors, { metadata: source.files[i]!.metadata });
  }
  expect(changed).toBe(4 * 8 * 3);
  return dir;
}

describe('convert', () => {
  test('dense → sparse → dense gives every file back byte for byte', async () => {
    const dense = await prunedDemo();
    const before = filesOf(dense);
    const folder = temporaryFolder();
    const sparse = join(folder, 'sparse');
    const phases = new Set<string>();
    const result = await convertCheckpoint({
      from: dense,
      to: 'sparse',
      output: sparse,
      onProgress: ({ phase, doneBytes, totalBytes }) => {
        phases.add(phase);
        expect(doneBytes).toBeLessThanOrEqual(totalBytes);
      },
    });
    expect([...phases]).toEqual(['measure', 'write']);
    expect(result.output).toBe(sparse);

    const opened = openCheckpoint(sparse);
    opened.validate();
    expect(opened.isSparse).toBe(true);
    expect(opened.storedBytes).toBe(result.outputBytes);
    expect(opened.get('model.layers.0.block_sparse_moe.experts.0.w1.weight').kind).toBe('bitmask');
    expect(opened.get('lm_head.weight').kind).toBe('dense');
    expect(opened.config.quantization_config).toMatchObject({ quant_method: 'espalier' });
    expect(contents(sparse)).toEqual(contents(dense));
    // Of the experts, 9/16 stay and a little: half of the values and one bit for each, and 8 bytes for each row.
    const experts = 4 * 8 * 3 * 192 * 384 * 2;
    const saved = openCheckpoint(dense).storedBytes - opened.storedBytes;
    expect(saved / experts).toBeGreaterThan(0.4);
    expect(saved / experts).toBeLessThan(7 / 16);
    for (const name of ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json']) {
      expect(filesOf(sparse)[name]).toBe(before[name]);
    }
    // Loaders that do not know the layout must not find its weights.
    expect(readdirSync(sparse).filter((name) => name.includes('.safetensors'))).toEqual([
      'espalier-00001-of-00002.safetensors',
      'espalier-00002-of-00002.safetensors',
      'espalier.safetensors.index.json',
    ]);

    const back = join(folder, 'dense');
    await convertCheckpoint({ from: sparse, to: 'dense', output: back });
    const after = filesOf(back);
    // The index is made anew: same content, other spacing.
    const index = 'model.safetensors.index.json';
    expect(JSON.parse(readFileSync(join(back, index), 'utf8'))).toEqual(
      JSON.parse(readFileSync(join(dense, index), 'utf8')),
    );
    expect({ ...after, [index]: '' }).toEqual({ ...before, [index]: '' });
    expect(filesOf(dense)).toEqual(before);
    expect(readdirSync(folder).sort()).toEqual(['dense', 'sparse']);
  });

  test('the stored layout is the documented one', async () => {
    const words = Uint16Array.of(5, 0, 0x8000, 0, 0, 0, 0, 0, 0, 7, ...new Array(10).fill(0));
    const rows = 64;
    const data = new Uint8Array(rows * words.byteLength);
    for (let row = 0; row < rows; row++) data.set(new Uint8Array(words.buffer), row * words.byteLength);
    const from = checkpointFolder({
      'model.safetensors': soundFile({ 'm.weight': { dtype: 'BF16', shape: [rows, 20], data } }),
    });
    const output = join(temporaryFolder(), 'sparse');
    await convertCheckpoint({ from, to: 'sparse', output });
    const { files, fileNames } = openCheckpoint(output);
    expect(fileNames).toEqual(['espalier.safetensors']);
    const stored = Object.fromEntries(
      files[0]!.tensors.map((t) => [t.name, { ...t, bytes: files[0]!.read(t.begin, t.end) }]),
    );
    expect(Object.keys(stored).sort()).toEqual(['m.bitmask', 'm.compressed', 'm.row_offsets', 'm.shape']);
    expect(stored['m.compressed']).toMatchObject({ dtype: 'BF16', shape: [rows * 3] });
    expect([...new Uint16Array(stored['m.compressed']!.bytes.buffer).subarray(0, 6)]).toEqual([
      5, 0x8000, 7, 5, 0x8000, 7,
    ]);
    expect(stored['m.bitmask']).toMatchObject({ dtype: 'U8', shape: [rows, 3] });
    expect([...stored['m.bitmask']!.bytes.subarray(0, 6)]).toEqual([0b101, 0b10, 0, 0b101, 0b10, 0]);
    expect([...new BigInt64Array(stored['m.shape']!.bytes.buffer)]).toEqual([64n, 20n]);
    expect(stored['m.row_offsets']).toMatchObject({ dtype: 'I64', shape: [rows] });
    expect([...new BigInt64Array(stored['m.row_offsets']!.bytes.buffer)].slice(0, 3)).toEqual([0n, 3n, 6n]);
  });

  test('only what gets smaller is packed, in every type, fused or not', async () => {
    const seed = Date.now() % 1e6;
    console.log(`seed ${seed}`);
    const random = mulberry32(seed);
    const noise = (bytes: number, sparsity: number, width: number) => {
      const data = new Uint8Array(bytes);
      for (let i = 0; i < bytes; i += width) {
        if (random() >= sparsity) for (let k = 0; k < width; k++) data[i + k] = random() * 256;
      }
      return data;
    };
    const tensors = {
      'bf16.weight': { dtype: 'BF16', shape: [40, 51], data: noise(40 * 51 * 2, 0.6, 2) },
      'f16.weight': { dtype: 'F16', shape: [40, 64], data: noise(40 * 64 * 2, 0.6, 2) },
      'f32.weight': { dtype: 'F32', shape: [33, 31], data: noise(33 * 31 * 4, 0.6, 4) },
      'zero.weight': { dtype: 'BF16', shape: [64, 64], data: new Uint8Array(64 * 64 * 2) },
      'full.weight': { dtype: 'BF16', shape: [64, 64], data: noise(64 * 64 * 2, 0, 2) },
      'ints.weight': { dtype: 'I32', shape: [64, 64], data: new Uint8Array(64 * 64 * 4) },
      'vector.weight': { dtype: 'BF16', shape: [4096], data: new Uint8Array(8192) },
      'empty.weight': { dtype: 'BF16', shape: [0, 64], data: new Uint8Array(0) },
      bias: { dtype: 'BF16', shape: [64, 64], data: new Uint8Array(64 * 64 * 2) },
      scalar: { dtype: 'F32', shape: [], data: Uint8Array.of(1, 2, 3, 4) },
      'layers.0.mlp.experts.gate_up_proj': { dtype: 'BF16', shape: [3, 40, 50], data: noise(3 * 40 * 50 * 2, 0.7, 2) },
      'layers.0.mlp.experts.down_proj': { dtype: 'BF16', shape: [3, 40, 50], data: noise(3 * 40 * 50 * 2, 0, 2) },
    };
    const from = checkpointFolder({ 'model.safetensors': soundFile(tensors) });
    const folder = temporaryFolder();
    await convertCheckpoint({ from, to: 'sparse', output: join(folder, 'sparse') });
    const sparse = openCheckpoint(join(folder, 'sparse'));
    sparse.validate();
    const kinds = Object.fromEntries([...sparse.names()].map((name) => [name, sparse.get(name).kind]));
    expect(kinds).toEqual({
      'bf16.weight': 'bitmask',
      'f16.weight': 'bitmask',
      'f32.weight': 'bitmask',
      'zero.weight': 'bitmask',
      'full.weight': 'dense',
      'ints.weight': 'dense',
      'vector.weight': 'dense',
      'empty.weight': 'dense',
      bias: 'dense',
      scalar: 'dense',
      'layers.0.mlp.experts.gate_up_proj': 'fused',
      'layers.0.mlp.experts.down_proj': 'dense',
    });
    for (const [name, { data }] of Object.entries(tensors)) expect(sparse.read(name)).toEqual(data);
    const fused = sparse.get('layers.0.mlp.experts.gate_up_proj');
    expect(fused).toMatchObject({ shape: [3, 40, 50], dtype: 'BF16' });
    // Any range of bytes reads as the dense tensor's, across rows and experts.
    const source = sparse.source('layers.0.mlp.experts.gate_up_proj');
    const whole = tensors['layers.0.mlp.experts.gate_up_proj'].data;
    for (let i = 0; i < 50; i++) {
      const begin = Math.floor(random() * whole.length);
      const end = begin + Math.floor(random() * (whole.length - begin));
      expect(await source.read(begin, end)).toEqual(whole.subarray(begin, end));
    }
    await convertCheckpoint({ from: join(folder, 'sparse'), to: 'dense', output: join(folder, 'dense') });
    expect(contents(join(folder, 'dense'))).toEqual(contents(from));
  });
});

describe('a conversion that cannot be done', () => {
  test('says so for what is stored that way already, or quantised', async () => {
    const output = join(temporaryFolder(), 'out');
    await expect(convertCheckpoint({ from: demo, to: 'dense', output })).rejects.toMatchObject({ code: 'USAGE' });
    const from = checkpointFolder({
      'model.safetensors': soundFile({}),
      'config.json': { quantization_config: { quant_method: 'fp8' } },
    });
    await expect(convertCheckpoint({ from, to: 'sparse', output })).rejects.toMatchObject({
      code: 'CONFIG',
      field: 'quantization_config',
    });
    expect(existsSync(output)).toBe(false);
  });

  test('leaves an old output as it was, and nothing beside it, when stopped or given a broken source', async () => {
    const dense = await prunedDemo();
    const folder = temporaryFolder();
    const output = join(folder, 'out');
    mkdirSync(output);
    writeFileSync(join(output, 'config.json'), 'old');
    for (const phase of ['measure', 'write']) {
      const controller = new AbortController();
      const onProgress = (progress: { phase: string }) => {
        if (progress.phase === phase) controller.abort();
      };
      await expect(
        convertCheckpoint({
          from: dense,
          to: 'sparse',
          output,
          overwrite: true,
          signal: controller.signal,
          onProgress,
        }),
      ).rejects.toMatchObject({ code: 'ABORTED' });
      expect(readdirSync(folder)).toEqual(['out']);
      expect(readFileSync(join(output, 'config.json'), 'utf8')).toBe('old');
    }
    const sparse = join(folder, 'sparse');
    await convertCheckpoint({ from: dense, to: 'sparse', output: sparse });
    const checkpoint = openCheckpoint(sparse);
    const broken = checkpoint.files[0]!.tensors.find(({ name }) => name.endsWith('.bitmask'))!;
    checkpoint.dispose();
    const file = join(sparse, checkpoint.fileNames[0]!);
    const bytes = readFileSync(file);
    bytes[broken.begin] = bytes[broken.begin]! ^ 1;
    writeFileSync(file, bytes);
    await expect(convertCheckpoint({ from: sparse, to: 'dense', output, overwrite: true })).rejects.toMatchObject({
      code: 'SPARSE',
      tensor: broken.name.replace('.bitmask', '.weight'),
    });
    expect(readdirSync(folder).sort()).toEqual(['out', 'sparse']);
    expect(readFileSync(join(output, 'config.json'), 'utf8')).toBe('old');
  });

  test('does not throw away an unfinished run unless told to', async () => {
    const from = await prunedDemo();
    const output = join(temporaryFolder(), 'out');
    mkdirSync(`${output}.partial`);
    writeFileSync(join(`${output}.partial`, 'layer-0'), 'done');
    const refused = convertCheckpoint({ from, to: 'sparse', output });
    await expect(refused).rejects.toMatchObject({ code: 'OUTPUT' });
    await expect(refused).rejects.toThrow(/pass --overwrite to discard it/);
    expect(readdirSync(`${output}.partial`)).toEqual(['layer-0']);
    await convertCheckpoint({ from, to: 'sparse', output, overwrite: true });
    expect(contents(output)).toEqual(contents(from));
  });

  test('refuses an output inside the input and leaves the input untouched', async () => {
    const dense = await prunedDemo();
    const before = filesOf(dense);
    for (const output of [dense, join(dense, 'sparse')]) {
      await expect(convertCheckpoint({ from: dense, to: 'sparse', output, overwrite: true })).rejects.toMatchObject({
        code: 'OUTPUT',
      });
    }
    expect(filesOf(dense)).toEqual(before);
  });
});

test('packing and unpacking rows loses nothing, whatever the bits', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(2 as const, 4 as const),
      fc.integer({ min: 1, max: 37 }),
      fc.integer({ min: 0, max: 9 }),
      fc.infiniteStream(
        fc.oneof(fc.constant(0), fc.constantFrom(0x8000, 0x7fc1, 0x80000000), fc.integer({ min: 0, max: 2 ** 32 - 1 })),
      ),
      (width, columns, rows, stream) => {
        const values = [...stream.take(rows * columns)];
        const elements = width === 2 ? Uint16Array.from(values) : Uint32Array.from(values);
        const bytes = new Uint8Array(elements.buffer);
        const kept = packValues(bytes, width);
        const mask = packMask(bytes, columns, width);
        const counts = [...countKept(bytes, columns, width)];
        for (let row = 0; row < rows; row++) {
          const nonzero = elements.subarray(row * columns, (row + 1) * columns).filter((element) => element !== 0);
          expect(counts[row]).toBe(nonzero.length);
        }
        expect(kept.byteLength).toBe(elements.filter((element) => element !== 0).length * width);
        expect(unpackRows(kept, mask, columns, width)).toEqual(bytes);
      },
    ),
  );
});

test('packing runs at more than 100 MB/s', () => {
  const columns = 4096;
  const random = mulberry32(1);
  const elements = Uint16Array.from({ length: 8 * 2 ** 20 }, () => (random() < 0.5 ? 0 : 1 + random() * 65535));
  const bytes = new Uint8Array(elements.buffer);
  const rate = (work: () => unknown) => {
    // The best of a few, as other work on the machine only ever makes it slower.
    const times = Array.from({ length: 5 }, () => {
      const start = performance.now();
      work();
      return performance.now() - start;
    });
    return bytes.byteLength / 1e3 / Math.min(...times);
  };
  const kept = packValues(bytes, 2);
  const mask = packMask(bytes, columns, 2);
  const rates = {
    count: rate(() => countKept(bytes, columns, 2)),
    values: rate(() => packValues(bytes, 2)),
    mask: rate(() => packMask(bytes, columns, 2)),
    unpack: rate(() => unpackRows(kept, mask, columns, 2)),
  };
  console.log(
    `MB/s of dense bytes: ${JSON.stringify(rates, (_, value) => (typeof value === 'number' ? Math.round(value) : value))}`,
  );
  for (const value of Object.values(rates)) expect(value).toBeGreaterThan(100);
});

test('config.json keeps its text: floats stay floats, and unmarking is the exact inverse', () => {
  for (const text of ['{"rope_theta": 10000.0, "n": 1e-05}', '{\n  "a": 1\n}\n', '{}', '{ }', ' {"a":{"b":{}}}\n']) {
    const marked = markSparse(text);
    expect(JSON.parse(marked)).toEqual({
      ...JSON.parse(text),
      quantization_config: expect.objectContaining({ quant_method: 'espalier' }),
    });
    expect(unmarkSparse(marked)).toBe(text);
    const reformatted = JSON.stringify(JSON.parse(marked), null, 4);
    expect(JSON.parse(unmarkSparse(reformatted))).toEqual(JSON.parse(text));
  }
});

function mulberry32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
