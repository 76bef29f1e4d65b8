/** n:m in the order of an expert's inner channels in which it keeps most: the same experts, more of their scores. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type PruneOptions, prune } from '../lib/index.ts';
import { resolveRecipe } from '../lib/prune/recipe.ts';
import { bitsOf, type HeldTensor, hashesOf, tensorsOf } from './support/checkpoints.ts';
import { demoModel } from './support/models.ts';
import { pruned, small, zerosOf } from './support/prune.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { errorOf } from './support/refusal.ts';

type Weights = NonNullable<Extract<NonNullable<PruneOptions['stages']>[number], { weights: unknown }>['weights']>;
const stagesOf = (weights: Weights) => [{ weights: { channelPermutation: true, ...weights } }];

const magnitude = (bits: number) => Math.abs(new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!);

/** Rows of a bf16 matrix, as texts that can be looked up. */
function rowsOf(tensor: HeldTensor): string[] {
  const bits = bitsOf(tensor);
  const cols = tensor.shape[1]!;
  return Array.from({ length: tensor.shape[0]! }, (_, row) => bits.subarray(row * cols, (row + 1) * cols).join());
}

test.each(['2:4', '4:8'])(
  '%s: rows of w1 and w3 and columns of w2 move together, and w2 keeps more',
  async (pattern) => {
    const group = Number(pattern.split(':')[1]);
    const dense = tensorsOf(demoModel);
    const plain = tensorsOf((await pruned({ method: 'magnitude', pattern })).output);
    const moved = tensorsOf((await pruned({ stages: stagesOf({ method: 'magnitude', pattern }) })).output);
    let [before, after, changed] = [0, 0, 0];
    for (const layer of [0, 3]) {
      for (let expert = 0; expert < 8; expert++) {
        const at = (name: string) => `model.layers.${layer}.block_sparse_moe.experts.${expert}.${name}.weight`;
        // Magnitudes of w1 are compared within its rows, which are pruned alike wherever they stand.
        const rows = new Map(rowsOf(plain.get(at('w1'))!).map((row, i) => [row, i]));
        const order = rowsOf(moved.get(at('w1'))!).map((row) => rows.get(row)!);
        expect([...order].sort((a, b) => a - b)).toEqual(Array.from(order.keys()));
        changed += order.filter((from, i) => from !== i).length;
        const w3 = rowsOf(plain.get(at('w3'))!);
        expect(rowsOf(moved.get(at('w3'))!)).toEqual(order.map((from) => w3[from]));
        const [old, now, unpermuted] = [dense, moved, plain].map((tensors) => bitsOf(tensors.get(at('w2'))!));
        const cols = order.length;
        for (let i = 0; i < now!.length; i++) {
          const from = i - (i % cols) + order[i % cols]!;
          if (now![i] !== 0 && now![i] !== old![from]) throw new Error(`${at('w2')}: weight ${i} is not the dense one`);
          before += magnitude(unpermuted![i]!);
          after += magnitude(now![i]!);
        }
        expect(zerosOf(now!, group).every((zeros) => zeros === group / 2)).toBe(true);
      }
    }
    expect(changed).toBeGreaterThan(1000);
    expect(after).toBeGreaterThan(before * 1.01);
  },
);

test('with statistics, updates and values: the same bytes for any number of threads, and from where a run stopped', async () => {
  const stages = stagesOf({ method: 'sparsegpt', pattern: '4:8', routerWeighting: true, values: 'int4' });
  const { output } = await pruned({ stages, threads: 3 });
  const control = new AbortController();
  const again = { ...small, stages, output: join(temporaryFolder(), 'again'), threads: 1 };
  const onProgress: PruneOptions['onProgress'] = ({ type }) => type === 'layer' && control.abort();
  await expect(prune({ ...again, signal: control.signal, onProgress })).rejects.toMatchObject({ code: 'ABORTED' });
  const resumed = await prune({ ...again, resume: true });
  expect(resumed.resumedLayers).toBe(1);
  expect(hashesOf(again.output)).toEqual(hashesOf(output));
});

test('changes what a method with scores of its own leaves of every layer, and no number of zeros', async () => {
  const [plain, moved] = [false, true].map((channelPermutation) =>
    pruned({ stages: stagesOf({ method: 'ria', pattern: '2:4', channelPermutation }) }),
  );
  const [a, b] = [await plain!, await moved!];
  expect(b.zeros).toBe(a.zeros);
  const [before, after] = [hashesOf(a.output), hashesOf(b.output)];
  const shards = Object.keys(before).filter((name) => name.endsWith('.safetensors'));
  expect(shards.filter((name) => before[name] !== after[name])).toHaveLength(4);
});

test('is refused where there is no pattern', () => {
  const stages = stagesOf({ method: 'ria', sparsity: 0.5 });
  expect(errorOf(() => resolveRecipe({ stages }))).toMatchObject({
    code: 'USAGE',
    field: 'stages.0.weights.channelPermutation',
  });
});
