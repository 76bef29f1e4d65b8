/** A pruned model saved packed beside its dense or sparse form: the values that its stages chose, and no others. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { convertCheckpoint, type ErrorCode, Model, type PruneOptions, prune, type Weights } from '../lib/index.ts';
import { contentsOf } from './support/checkpoints.ts';
import { isExpert, pruned, randomIds, small } from './support/prune.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { freshSeed, logitsOf } from './support/steps.ts';

const ids = [...randomIds(freshSeed(), 24)];

async function logits(dir: string, weights?: Weights): Promise<unknown> {
  await using model = await Model.load(dir, { weights });
  return await logitsOf(model, ids);
}

const stages = {
  'int4 by a stage of its own': [{ weights: { method: 'wanda', sparsity: 0.5 } }, { quantize: { values: 'int4' } }],
  'int8 by a stage of its own': [{ weights: { method: 'ria', pattern: '2:4' } }, { quantize: { values: 'int8' } }],
  'int4 in one pass': [{ weights: { method: 'sparsegpt', pattern: '2:4', values: 'int4', channelPermutation: true } }],
  'nothing rounded': [{ weights: { method: 'magnitude' } }],
} as const satisfies Record<string, PruneOptions['stages']>;

test.each([
  ['int4 by a stage of its own', 'int4', 'dense'],
  ['int8 by a stage of its own', 'int8', 'sparse'],
  ['int4 in one pass', 'int4', 'dense'],
  ['nothing rounded', 'source', 'sparse'],
] as const)('holds exactly what the stages chose: %s', async (recipe, experts, save) => {
  const packed = join(temporaryFolder(), 'packed');
  const { output } = await pruned({ stages: stages[recipe], save, packed, weights: { rest: 'int8' } });
  expect(await logits(packed)).toEqual(await logits(output, { experts, rest: 'int8' }));
  const back = join(temporaryFolder(), 'back');
  await convertCheckpoint({ from: packed, to: 'dense', output: back });
  const [wanted, found] = [contentsOf(output), contentsOf(back)];
  const names = Object.keys(wanted).filter(isExpert);
  expect(names).toHaveLength(4 * 8 * 3);
  expect(names.filter((name) => found[name] !== wanted[name])).toEqual([]);
});

test('is made by a resumed run that had finished without it, and then left alone', async () => {
  const folder = temporaryFolder();
  const [output, packed] = [join(folder, 'pruned'), join(folder, 'packed')];
  const options = { ...small, stages: stages['nothing rounded'], output };
  await prune(options);
  expect(await prune({ ...options, packed, resume: true })).toMatchObject({ alreadyFinished: true });
  const stamp = () => statSync(packed, { bigint: true }).mtimeNs;
  const made = stamp();
  await prune({ ...options, packed, resume: true });
  expect(stamp()).toBe(made);
  await prune({ ...options, packed, overwrite: true });
  expect(stamp()).not.toBe(made);
});

describe('is refused before anything is written', () => {
  const int4 = stages['int4 by a stage of its own'];
  const wrong: [string, (folder: string) => Partial<PruneOptions>, ErrorCode, string?][] = [
    [
      'other values than the recipe’s',
      (at) => ({ stages: int4, packed: `${at}/p`, weights: 'int8' }),
      'USAGE',
      'weights',
    ],
    ['weights and no copy', () => ({ method: 'magnitude', weights: 'int8' }), 'USAGE', 'weights'],
    ['the output itself', (at) => ({ method: 'magnitude', packed: `${at}/pruned` }), 'USAGE', 'packed'],
    ['a place in the output', (at) => ({ method: 'magnitude', packed: `${at}/pruned/p` }), 'OUTPUT'],
    ['a folder that is there', (at) => ({ method: 'magnitude', packed: at }), 'OUTPUT'],
  ];
  test.each(wrong)('%s', async (_, options, code, field) => {
    const folder = temporaryFolder();
    const run = prune({ ...small, output: join(folder, 'pruned'), ...options(folder) });
    await expect(run).rejects.toMatchObject({ code, ...(field && { field }) });
    expect([readdirSync(folder), existsSync(join(folder, 'pruned'))]).toEqual([[], false]);
  });
});
