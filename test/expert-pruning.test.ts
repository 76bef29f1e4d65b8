/** Checkpoints after their experts were pruned or merged: what is in them, and that they compute what they should. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { dryRun, Model, type PruneOptions, type PruneResult, prune } from '../lib/index.ts';
import { contentsOf, editedCheckpoint, type HeldTensor, tensorsOf } from './support/checkpoints.ts';
import { rowsOf } from './support/floats.ts';
import { familyFolder } from './support/models.ts';
import { randomIds } from './support/prune.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { difference, logitsOf } from './support/steps.ts';

const ids = [...randomIds(11, 40, 128)];
const calibration = randomIds(3, 512, 128);
const modelOf = (family: string) => join(familyFolder, family);

type Experts = Extract<NonNullable<PruneOptions['stages']>[number], { experts: unknown }>['experts'];

async function pruneExperts(family: string, experts: Experts, more: Partial<PruneOptions> = {}): Promise<PruneResult> {
  const output = join(temporaryFolder(), 'pruned');
  const stages = [{ experts }];
  return prune({ model: modelOf(family), output, calibration, samples: 16, sequenceLength: 32, stages, ...more });
}

async function logits(folder: string): Promise<Float32Array[]> {
  await using model = await Model.load(folder);
  return await logitsOf(model, ids);
}

const configOf = (folder: string) => JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'));
/** Of each layer with experts, what each expert is made of. */
const originOf = ({ layers }: PruneResult) =>
  layers.filter(({ experts }) => experts.length > 0).map(({ experts }) => experts.map(({ from }) => from!));

/** The first axis of a tensor: only the given indices of it. */
function slices({ dtype, shape, bytes }: HeldTensor, kept: readonly number[]): HeldTensor {
  const size = bytes.byteLength / shape[0]!;
  const parts = kept.map((i) => Buffer.from(bytes.subarray(i * size, (i + 1) * size)));
  return { dtype, shape: [kept.length, ...shape.slice(1)], bytes: Buffer.concat(parts) };
}

/** What selecting experts should leave of a checkpoint's tensors, done here to the source by hand. */
function selected(tensors: Map<string, HeldTensor>, kept: readonly (readonly number[])[], layers: readonly number[]) {
  const result = new Map<string, HeldTensor>();
  for (const [name, tensor] of tensors) {
    const layer = Number(/^model\.layers\.(\d+)\./.exec(name)?.[1] ?? -1);
    const own = kept[layers.indexOf(layer)];
    const expert = /^(.*\.experts\.)(\d+)(\..*)$/.exec(name);
    if (own === undefined) result.set(name, tensor);
    else if (expert !== null) {
      const place = own.indexOf(Number(expert[2]));
      if (place >= 0) result.set(`${expert[1]}${place}${expert[3]}`, tensor);
    } else if (/\.(gate\.weight|experts\.(gate_up|down)_proj)$/.test(name)) result.set(name, slices(tensor, own));
    else result.set(name, tensor);
  }
  return result;
}

describe('selection', () => {
  const cases: [string, Experts, number[]][] = [
    ['mixtral-window', { method: 'reap', keep: 3 }, [0, 1]],
    ['mixtral-fused', { method: 'naee', keep: 4 }, [0, 1]],
    ['olmoe-clip', { method: 'frequency', ratio: 0.5 }, [0, 1]],
    ['qwen2-moe-dense-layer', { method: 'msan', ratio: 0.5 }, [0, 2]],
    ['qwen3-moe-fused', { method: 'stun', keep: 4 }, [0, 1]],
    ['olmoe-clip', { method: 'random', ratio: 0.4, scope: 'global' }, [0, 1]],
    ['olmoe-clip', { method: 'family', b: 0, alpha: 2, beta: 2, keep: 4, scope: 'global' }, [0, 1]],
  ];
  test.each(cases)('%s with %j: kept experts and router rows keep their bytes', async (family, experts, layers) => {
    const result = await pruneExperts(family, experts);
    const kept = originOf(result).map((own) => own.map(([only]) => only!));
    for (const own of kept) expect(own).toEqual([...new Set(own)].sort((a, b) => a - b));
    const wanted = await editedCheckpoint(modelOf(family), join(temporaryFolder(), 'wanted'), (tensors) => {
      const chosen = selected(tensors, kept, layers);
      tensors.clear();
      for (const [name, tensor] of chosen) tensors.set(name, tensor);
    });
    expect(contentsOf(result.output)).toEqual(contentsOf(wanted));
    const before = configOf(modelOf(family));
    const field = before.num_experts === undefined ? 'num_local_experts' : 'num_experts';
    const counts = kept.map(({ length }) => length);
    const isUniform = new Set(counts).size === 1;
    expect(configOf(result.output)).toEqual({ ...before, [field]: isUniform ? counts[0] : counts });
    expect(result.warnings.some((warning) => warning.includes('only Espalier loads'))).toBe(!isUniform);
    expect((await logits(result.output)).length).toBe(ids.length);
  });

  test('with all experts kept the model computes what it did', async () => {
    const result = await pruneExperts('olmoe-clip', { method: 'reap', ratio: 0 });
    expect(contentsOf(result.output)).toEqual(contentsOf(modelOf('olmoe-clip')));
    expect(await logits(result.output)).toEqual(await logits(modelOf('olmoe-clip')));
  });

  test('a top k above the experts kept is lowered', async () => {
    const result = await pruneExperts('olmoe-clip', { method: 'reap', keep: 2 });
    expect(configOf(result.output).num_experts_per_tok).toBe(2);
    expect(result.warnings.join()).toContain('now goes to 2');
    expect((await logits(result.output)).length).toBe(ids.length);
  });

  test('stun looks at no data unless coactivation counts', async () => {
    const stun = { method: 'stun', keep: 3 } as const;
    const withData = await pruneExperts('mixtral-window', stun);
    const without = await pruneExperts('mixtral-window', stun, { calibration: undefined });
    expect(contentsOf(without.output)).toEqual(contentsOf(withData.output));
    await expect(
      pruneExperts('mixtral-window', { ...stun, lambda2: 1 }, { calibration: undefined }),
    ).rejects.toMatchObject({ code: 'USAGE', field: 'calibration' });
  });

  test('the representative of a stun cluster is the member nearest to the mean of their weights', async () => {
    const result = await pruneExperts('olmoe-clip', { method: 'stun', keep: 3 });
    const tensors = tensorsOf(modelOf('olmoe-clip'));
    const means = await pruneExperts('olmoe-clip', { method: 'stun', keep: 3, kappa: 4 });
    let checked = 0;
    for (const [layer, clusters] of originOf(means).entries()) {
      const representatives = originOf(result)[layer]!.flat();
      for (const members of clusters) {
        const weights = members.map((expert) =>
          ['gate_proj', 'up_proj', 'down_proj'].flatMap((role) =>
            rowsOf(tensors.get(`model.layers.${layer}.mlp.experts.${expert}.${role}.weight`)!).flatMap((row) => [
              ...row,
            ]),
          ),
        );
        const distances = weights.map((own) =>
          own.reduce((sum, value, i) => {
            const mean = weights.reduce((total, other) => total + other[i]!, 0) / weights.length;
            return sum + (value - mean) ** 2;
          }, 0),
        );
        const nearest = Math.min(...distances);
        const chosen = members.filter((expert) => representatives.includes(expert));
        expect(chosen).toHaveLength(1);
        // Of two members both are as near.
        expect(distances[members.indexOf(chosen[0]!)]!).toBeLessThanOrEqual(nearest * (1 + 1e-5));
        if (members.length > 1) checked++;
      }
    }
    expect(checked).toBeGreaterThan(0);
  });
});

describe('merging', () => {
  test.each(['olmoe-clip', 'qwen3-moe-fused'])('%s: a map and repeated experts compute the same', async (family) => {
    for (const method of ['hc-smoe', 'm-smoe'] as const) {
      const map = await pruneExperts(family, { method, keep: 4 });
      const repeat = await pruneExperts(family, { method, keep: 4, saveMerges: 'repeat' });
      // A token's outputs are added in the order of the experts, which differs.
      const wanted = await logits(repeat.output);
      for (const [i, row] of (await logits(map.output)).entries()) {
        expect(difference(row, wanted[i]!)).toBeLessThan(1e-5);
      }
      const [mapped, repeated] = [configOf(map.output), configOf(repeat.output)];
      expect(mapped.expert_of_row).toHaveLength(2);
      expect(mapped.expert_of_row[0]).toHaveLength(6);
      expect(repeated).toEqual(configOf(modelOf(family)));
      expect(map.warnings.join()).toContain('only Espalier loads');
      expect(repeat.warnings).toEqual([]);
    }
  });

  test('a merged expert is the weighted mean of its members, an average router the mean of their rows', async () => {
    const family = 'olmoe-clip';
    const result = await pruneExperts(family, { method: 'hc-smoe', keep: 3, saveMerges: 'average' });
    expect(configOf(result.output)).toEqual({ ...configOf(modelOf(family)), num_experts: 3 });
    const [before, after] = [tensorsOf(modelOf(family)), tensorsOf(result.output)];
    let merged = 0;
    for (const [layer, clusters] of originOf(result).entries()) {
      const [rows, newRows] = [before, after].map((t) => rowsOf(t.get(`model.layers.${layer}.mlp.gate.weight`)!)) as [
        Float64Array[],
        Float64Array[],
      ];
      for (const [expert, members] of clusters.entries()) {
        for (const [i, value] of newRows[expert]!.entries()) {
          const mean = members.reduce((sum, member) => sum + rows[member]![i]!, 0) / members.length;
          expect(Math.abs(value - mean)).toBeLessThanOrEqual(2 ** -8 * Math.abs(mean));
        }
        const name = (e: number) => `model.layers.${layer}.mlp.experts.${e}.up_proj.weight`;
        const [own, ...sources] = [after.get(name(expert))!, ...members.map((e) => before.get(name(e))!)].map((t) =>
          rowsOf(t).flatMap((row) => [...row]),
        ) as [number[], ...number[][]];
        // A mean lies between its members.
        for (const [i, value] of own.entries()) {
          const all = sources.map((values) => values[i]!);
          const slack = 2 ** -8 * Math.abs(value);
          expect(value).toBeGreaterThanOrEqual(Math.min(...all) - slack);
          expect(value).toBeLessThanOrEqual(Math.max(...all) + slack);
        }
        if (members.length > 1) merged++;
      }
    }
    expect(merged).toBeGreaterThan(0);
  });
});

describe('weights after experts', () => {
  const weights = { method: 'moe-pruner', sparsity: 0.5 } as const;

  test.each(['reap', 'hc-smoe'] as const)('%s: one run does what two do', async (method) => {
    const family = 'olmoe-clip';
    const both = await pruneExperts(
      family,
      { method, keep: 4 },
      { stages: [{ experts: { method, keep: 4 } }, { weights }] },
    );
    const first = await pruneExperts(family, { method, keep: 4 });
    const second = await pruneExperts(family, {}, { model: first.output, stages: [{ weights }] });
    expect(contentsOf(both.output)).toEqual(contentsOf(second.output));
    expect(both.sparsity).toBeGreaterThan(0.49);
  });

  test('a sparse checkpoint holds the experts that are left', async () => {
    const stages = [{ experts: { method: 'reap', keep: 4 } }, { weights }] as const;
    for (const family of ['olmoe-clip', 'qwen3-moe-fused']) {
      const dense = await pruneExperts(family, {}, { stages });
      const sparse = await pruneExperts(family, {}, { stages, save: 'sparse' });
      expect(await logits(sparse.output)).toEqual(await logits(dense.output));
    }
  });
});

describe('skipping experts while running', () => {
  test('what pruning measured is stored, and a model may run by it', async () => {
    const { output } = await pruneExperts('olmoe-clip', { method: 'reap', keep: 4, skipExperts: true });
    const { layers } = JSON.parse(readFileSync(join(output, 'espalier.json'), 'utf8'));
    for (const { gateRatios } of layers) {
      expect(gateRatios).toHaveLength(1);
      const [second, third] = gateRatios[0] as number[];
      expect(second).toBeLessThanOrEqual(1);
      expect(third).toBeLessThan(second!);
      expect(third).toBeGreaterThan(0);
    }
    const whole = await logits(output);
    await using model = await Model.load(output, { skipExperts: true });
    const skipped = await logitsOf(model, ids);
    expect(Math.max(...skipped.map((row, i) => difference(row, whole[i]!)))).toBeGreaterThan(1e-4);
    // Gates fall, so every one is below its first's and none below 0. Of three experts only the third may be left out.
    const by = async (ratios: number[]) => {
      const stored = JSON.stringify({ layers: layers.map(() => ({ gateRatios: [ratios] })) });
      writeFileSync(join(output, 'espalier.json'), stored);
      await using bounded = await Model.load(output, { skipExperts: true });
      return await logitsOf(bounded, ids);
    };
    expect(await by([0, 0])).toEqual(whole);
    expect(await by([1, 0])).toEqual(whole);
    const two = await by([0, 1]);
    expect(two).not.toEqual(whole);
    expect(await by([1, 1])).toEqual(two);
  });

  test('without ratios, or with those of another model, it is a USAGE error', async () => {
    const { output } = await pruneExperts('olmoe-clip', { method: 'reap', keep: 4 });
    for (const folder of [output, modelOf('olmoe-clip')]) {
      await expect(Model.load(folder, { skipExperts: true })).rejects.toMatchObject({
        code: 'USAGE',
        field: 'skipExperts',
      });
    }
  });
});

test('a dry run foresees the experts that are left', async () => {
  const output = join(temporaryFolder(), 'pruned');
  const model = modelOf('olmoe-clip');
  const stages = [{ experts: { method: 'reap', keep: 4 } }, { weights: { sparsity: 0.5 } }] as const;
  const options = { model, output, calibration, samples: 16, sequenceLength: 32, stages };
  const foreseen = await dryRun(options);
  expect(existsSync(output)).toBe(false);
  const found = await prune(options);
  expect(foreseen.matrices).toBe(2 * 4 * 3);
  expect(foreseen.weights).toBe(found.size);
  expect(foreseen.zeros).toBe(found.zeros);
});

describe('what is refused', () => {
  const wrong: [string, Experts, string][] = [
    ['a ratio that leaves none', { ratio: 1 }, 'stages.0.experts.ratio'],
    ['no expert kept', { keep: 0 }, 'stages.0.experts.keep'],
    ['ratio and keep', { keep: 2, ratio: 0.5 }, 'stages.0.experts.keep'],
    ['more than there are', { keep: 7 }, 'stages.0.experts.keep'],
    ['layers with none left', { ratio: 0.95, scope: 'global' }, 'stages.0.experts.ratio'],
    ['a scope that a method lacks', { method: 'naee', scope: 'global' }, 'stages.0.experts.scope'],
    ['another method’s option', { method: 'reap', lambda2: 1 }, 'stages.0.experts.lambda2'],
    ['a place for merges without merging', { method: 'stun', saveMerges: 'map' }, 'stages.0.experts.saveMerges'],
  ];
  test.each(wrong)('%s: a USAGE error names the option, and nothing is written', async (_, experts, field) => {
    const output = join(temporaryFolder(), 'pruned');
    await expect(pruneExperts('olmoe-clip', experts, { output })).rejects.toMatchObject({ code: 'USAGE', field });
    expect(existsSync(output) || existsSync(`${output}.partial`)).toBe(false);
  });

  test('experts that were merged before', async () => {
    const { output } = await pruneExperts('olmoe-clip', { method: 'hc-smoe', keep: 4 });
    await expect(pruneExperts('', { method: 'random' }, { model: output })).rejects.toMatchObject({ code: 'USAGE' });
  });
});
