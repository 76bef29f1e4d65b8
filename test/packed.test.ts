import { copyFileSync, cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { convertCheckpoint, openCheckpoint } from '../lib/checkpoint/index.ts';
import { type ErrorCode, isEspalierError } from '../lib/errors.ts';
import { prune } from '../lib/prune/prune.ts';
import { inspect } from '../lib/report/inspect.ts';
import { Model } from '../lib/runtime/model.ts';
import { packCheckpoint } from '../lib/runtime/pack.ts';
import type { Weights } from '../lib/runtime/weights.ts';
import { contentsOf, editedCheckpoint, hashesOf } from './support/checkpoints.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';

const demo = new URL('../models/demo', import.meta.url).pathname;
const family = (name: string) => new URL(`./golden/families/${name}`, import.meta.url).pathname;
const prompt = [3, 17, 42, 5, 99, 8, 21, 2];

const seed = Number(process.env.ESPALIER_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
/** mulberry32 */
function randomNumbers(start: number): () => number {
  let state = start;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The demo model with half of its experts' weights zero, scattered; layer 1 in groups of 2:4. */
function prunedDemo(): Promise<string> {
  return editedCheckpoint(demo, join(temporaryFolder(), 'pruned'), (tensors) => {
    for (const [name, { bytes }] of tensors) {
      if (!name.includes('.experts.')) continue;
      const words = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
      const grouped = name.includes('.layers.1.');
      for (let k = 0; k < words.length; k++) {
        if (grouped ? k % 4 < 2 : (k * 2654435761) % 4294967296 < 2147483648) words[k] = 0;
      }
    }
  });
}

/** Log-probabilities of a fixed continuation: equal numbers mean equal weights. */
async function scores(dir: string, weights?: Weights, mapped = false): Promise<number[]> {
  await using model = await Model.load(dir, { weights, mapped, kvTokens: 64, threads: 2 });
  const blocks = Int32Array.from(model.kv.take(1));
  const { scores } = await model.step({
    tokens: Int32Array.from(prompt),
    slices: [{ count: prompt.length, position: 0, blocks }],
    scoreRows: Int32Array.from(prompt.slice(1).map((_, row) => row)),
    scoreTargets: Int32Array.from(prompt.slice(1)),
  });
  expect(scores.every(Number.isFinite)).toBe(true);
  return [...scores];
}

async function codeOf(work: Promise<unknown>): Promise<ErrorCode | undefined> {
  try {
    await work;
    return undefined;
  } catch (error) {
    if (!isEspalierError(error)) throw error;
    return error.code;
  }
}

async function packed(from: string, weights?: Weights): Promise<string> {
  const output = join(temporaryFolder(), 'packed');
  const phases = new Set<string>();
  const { outputBytes } = await packCheckpoint({
    from,
    output,
    weights,
    onProgress: ({ phase, doneBytes, totalBytes }) => {
      phases.add(phase);
      expect(doneBytes).toBeLessThanOrEqual(totalBytes);
    },
  });
  expect(outputBytes).toBeGreaterThan(0);
  expect([...phases]).toEqual(['measure', 'write']);
  return output;
}

describe('a packed checkpoint', () => {
  test.each<Weights | undefined>([undefined, 'bf16', 'int8', 'int4', { experts: 'int4', rest: 'int8' }])(
    'runs as the one it was packed from, with weights %j',
    async (weights) => {
      const source = await prunedDemo();
      const output = await packed(source, weights);
      expect(await scores(output)).toEqual(await scores(source, weights));
      expect(await scores(output, weights ?? 'source', true)).toEqual(await scores(output));
    },
  );

  test.each(['mixtral-fused', 'qwen3-moe-fused', 'qwen2-moe-dense-layer', 'olmoe-bias'])(
    'of %s, fused or with dense parts and biases, likewise',
    async (name) => {
      for (const weights of ['source', 'int8'] as const) {
        const output = await packed(family(name), weights);
        expect(await scores(output)).toEqual(await scores(family(name), weights));
      }
    },
  );

  test('has the same bytes from a dense save, a sparse save, and for any number of threads', async () => {
    const dense = await prunedDemo();
    const sparse = join(temporaryFolder(), 'sparse');
    await convertCheckpoint({ from: dense, to: 'sparse', output: sparse });
    const weights = { experts: 'int4', rest: 'int8' } as const;
    const expected = hashesOf(await packed(dense, weights));
    expect(Object.keys(expected).filter((name) => name.endsWith('.safetensors')).length).toBeGreaterThan(1);
    expect(hashesOf(await packed(sparse, weights))).toEqual(expected);
    const output = join(temporaryFolder(), 'one');
    await packCheckpoint({ from: dense, output, weights, threads: 1 });
    expect(hashesOf(output)).toEqual(expected);
  });

  test('has blocks at multiples of 64 bytes, and no file that a stock loader takes for weights', async () => {
    const output = await packed(await prunedDemo(), 'int8');
    const names = readdirSync(output).filter((name) => name.includes('.safetensors'));
    expect(names.every((name) => name.startsWith('espalier-packed'))).toBe(true);
    using checkpoint = openCheckpoint(output);
    let blocks = 0;
    for (const { tensors } of checkpoint.files) {
      for (const { name, begin, end } of tensors) {
        if (!name.includes('.packed')) continue;
        expect([begin % 64, end % 64]).toEqual([0, 0]);
        blocks++;
      }
    }
    expect(blocks).toBeGreaterThan(4 * 8 * 3);
    const formats = new Set(
      [...checkpoint.names()].flatMap((name) => checkpoint.packed(name)?.pieces.map((p) => p.format)),
    );
    expect(formats.has('dense int8')).toBe(true);
  });

  test('goes back to dense: bf16 exactly, int8 to within half a step', async () => {
    const source = await prunedDemo();
    const before = contentsOf(source);
    for (const weights of ['source', 'int8'] as const) {
      const output = join(temporaryFolder(), 'dense');
      await convertCheckpoint({ from: await packed(source, weights), to: 'dense', output });
      const after = contentsOf(output);
      expect(Object.keys(after).sort()).toEqual(Object.keys(before).sort());
      if (weights === 'source') expect(after).toEqual(before);
      else expect(after).not.toEqual(before);
      expect(await scores(output)).toHaveLength(prompt.length - 1);
      expect(readFileSync(join(output, 'config.json'), 'utf8')).toBe(readFileSync(join(source, 'config.json'), 'utf8'));
    }
  });

  test('is inspected like the source', async () => {
    const source = await prunedDemo();
    const [there, here] = [await inspect(source), await inspect(await packed(source))];
    expect(here.storage).toBe('packed');
    expect(here.layers).toEqual(there.layers);
    expect(here.bytes.stored).toBeLessThan(there.bytes.stored);
  });

  test('refuses other weights, pruning, packing again and the sparse layout', async () => {
    const output = await packed(demo, { experts: 'int4', rest: 'int8' });
    const into = join(temporaryFolder(), 'x');
    expect(await codeOf(Model.load(output, { weights: 'int8' }))).toBe('USAGE');
    expect(await codeOf(packCheckpoint({ from: output, output: into }))).toBe('USAGE');
    expect(await codeOf(convertCheckpoint({ from: output, to: 'sparse', output: into }))).toBe('USAGE');
    expect(await codeOf(prune({ model: output, output: into }))).toBe('USAGE');
  });

  test('runs dense where that is asked for', async () => {
    const source = await prunedDemo();
    const output = await packed(source, 'int8');
    await using sparse = await Model.load(output, { kvTokens: 64 });
    await using dense = await Model.load(output, { kvTokens: 64, format: 'dense' });
    expect(dense.info.formats).toEqual(['dense int8']);
    expect(dense.info.expertBytes).toBeGreaterThanOrEqual(sparse.info.expertBytes);
  });
});

describe('a damaged packed checkpoint', () => {
  /** A copy of a packed model whose second shard `edit` changed. */
  function damaged(from: string, edit: (bytes: Buffer) => Buffer): string {
    const dir = join(temporaryFolder(), 'damaged');
    cpSync(from, dir, { recursive: true });
    const shard = readdirSync(dir)
      .filter((name) => name.endsWith('.safetensors'))
      .sort()[1]!;
    writeFileSync(join(dir, shard), edit(readFileSync(join(dir, shard))));
    return dir;
  }

  test('is refused with a code, or runs: changed bytes never end the process', async () => {
    console.log(`ESPALIER_TEST_SEED=${seed}`);
    const random = randomNumbers(seed);
    const sound = await packed(await prunedDemo(), { experts: 'int8', rest: 'int4' });
    const found = new Set<string>();
    for (let round = 0; round < 40; round++) {
      const dir = damaged(sound, (bytes) => {
        const first = 8 + Number(bytes.readBigUInt64LE(0));
        for (let i = 0; i < 40; i++) {
          // Half of the changes to the first bytes, where headers are; half anywhere.
          const at = first + Math.floor(random() * (i % 2 === 0 ? 256 : bytes.length - first));
          bytes[at] = Math.floor(random() * 256);
        }
        return bytes;
      });
      const code = await codeOf(
        Model.load(dir, { kvTokens: 64, mapped: round % 2 === 0 }).then(async (model) => {
          for await (const _ of model.generate(prompt, { maxTokens: 2 })) {
          }
          model.dispose();
        }),
      );
      found.add(code ?? 'ran');
    }
    expect([...found].filter((code) => !['ran', 'SPARSE', 'CONFIG', 'MISMATCH'].includes(code))).toEqual([]);
    expect(found.has('SPARSE')).toBe(true);
  });

  test('is refused by name when truncated, of another version, or with blocks exchanged', async () => {
    const sound = await packed(demo);
    expect(await codeOf(Model.load(damaged(sound, (bytes) => bytes.subarray(0, bytes.length - 64))))).toBe('TRUNCATED');
    const blockStart = (bytes: Buffer) => 8 + Number(bytes.readBigUInt64LE(0));
    const other = damaged(sound, (bytes) => {
      bytes.writeUInt32LE(1, blockStart(bytes) + 8);
      return bytes;
    });
    expect(await codeOf(Model.load(other))).toBe('CONFIG');
    const config = damaged(sound, (bytes) => bytes);
    const text = readFileSync(join(config, 'config.json'), 'utf8');
    expect(text).toContain('"version":1');
    writeFileSync(join(config, 'config.json'), text.replace('"version":1', '"version":2'));
    expect(await codeOf(Model.load(config))).toBe('CONFIG');
    // Two names of equal length whose matrices have different shapes.
    const exchanged = damaged(sound, (bytes) => {
      const json = bytes.subarray(8, blockStart(bytes)).toString('latin1');
      const swapped = json.replaceAll('q_proj', '?').replaceAll('k_proj', 'q_proj').replaceAll('?', 'k_proj');
      return Buffer.concat([bytes.subarray(0, 8), Buffer.from(swapped, 'latin1'), bytes.subarray(blockStart(bytes))]);
    });
    expect(await codeOf(Model.load(exchanged))).toBe('MISMATCH');
  });

  test('is refused when a block is missing', async () => {
    const sound = await packed(demo);
    const dir = join(temporaryFolder(), 'missing');
    cpSync(sound, dir, { recursive: true });
    const shards = readdirSync(dir)
      .filter((name) => name.endsWith('.safetensors'))
      .sort();
    copyFileSync(join(dir, shards[0]!), join(dir, shards[1]!));
    expect(await codeOf(Model.load(dir))).toBe('INDEX');
  });
});
