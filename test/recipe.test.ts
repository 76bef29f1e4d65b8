/** Recipes: what stands for what, and what is refused where. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { readRecipe } from '../lib/index.ts';
import { type RecipeOptions, resolveRecipe } from '../lib/prune/recipe.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { errorOf } from './support/refusal.ts';

function written(text: string): string {
  const path = join(temporaryFolder(), 'recipe.yaml');
  writeFileSync(path, text);
  return path;
}

describe('a recipe file', () => {
  const wanted = resolveRecipe({ method: 'wanda', pattern: '2:4', seed: 3 });

  test.each([
    ['short YAML', 'method: wanda\npattern: 2:4\nseed: 3\n'],
    ['short JSON', '{"method": "wanda", "pattern": "2:4", "seed": 3}'],
    ['YAML with stages', 'stages:\n  - weights: {method: wanda, pattern: 2:4}\nseed: 3\n'],
    ['JSON with stages', '{"stages": [{"weights": {"method": "wanda", "pattern": "2:4"}}], "seed": 3}'],
  ])('says the same as %s', (_, text) => {
    expect(resolveRecipe(readRecipe(written(text)))).toEqual(wanted);
  });

  test('may be no more than the list of its stages', () => {
    const { stages } = resolveRecipe(readRecipe(written('- weights:\n    method: wanda\n    pattern: "2:4"\n')));
    expect(stages).toEqual(wanted.stages);
  });

  test('has stages with defaults', () => {
    const { stages } = resolveRecipe(readRecipe(written('- weights:\n')));
    expect(stages).toEqual([
      {
        stage: 'weights',
        method: 'moe-pruner',
        budget: { sparsity: 0.5 },
        routerWeighting: true,
        values: 'float',
        layers: 'uniform',
        experts: 'uniform',
        shrinkage: 2,
      },
    ]);
  });

  test.each([
    ['method: wanda\nsparsness: 0.5\n', 2, 'sparsness'],
    ['seed: 1\nstages:\n  - weights:\n      method: wanda\n      patern: 2:4\n', 5, 'stages.0.weights.patern'],
    ['# two\n- weights: {method: wanda}\n- weights: {method: magnitude}\n', 3, 'stages.1'],
    ['- prune: {method: wanda}\n', 1, 'stages.0'],
    ['- weights: {}\n  recover: {}\n', 1, 'stages.0'],
    ['- weights:\n    sparsity: 0.5\n    pattern: 2:4\n', 3, 'stages.0.weights.pattern'],
    ['- weights:\n    method: magnitude\n    routerWeighting: true\n', 3, 'stages.0.weights.routerWeighting'],
    ['- weights:\n    method: optimal\n', 2, 'stages.0.weights.method'],
    ['stages: []\n', 1, 'stages'],
    ['stages: wanda\n', 1, 'stages'],
    ['save: sparse\nmethod: wanda\nstages:\n  - weights: {}\n', 2, 'method'],
    ['samples: 0\n', 1, 'samples'],
  ])('that is wrong is refused with its line: %j', (text, line, field) => {
    const path = written(text);
    const error = errorOf(() => readRecipe(path));
    expect(error).toMatchObject({ code: 'RECIPE', file: path, field });
    expect(error.message).toContain(`${path}, line ${line}: `);
  });

  test.each([
    ['a number', '7', 1],
    ['nothing', '', 1],
    ['broken YAML', 'a: 1\nmethod: [wanda\n', 3],
    ['a field twice', 'seed: 1\nseed: 2\n', 2],
  ])('that is no recipe is refused: %s', (_, text, line) => {
    const path = written(text);
    const error = errorOf(() => readRecipe(path));
    expect(error).toMatchObject({ code: 'RECIPE', file: path });
    expect(error.message).toContain(`line ${line}: `);
  });
});

test('options at the top make stages in their order', () => {
  const names = (options: RecipeOptions) => resolveRecipe(options).stages.map(({ stage }) => stage);
  expect(names({ quantizeValues: 'int8', recoverEpochs: 2 })).toEqual(['weights', 'recover', 'quantize']);
  expect(names({ expertsKeep: 3, recoverEpochs: 2 })).toEqual(['experts', 'recover']);
  const given = { recoverEpochs: 2, method: 'wanda', quantizeValues: 'int8', expertsKeep: 3 } as const;
  expect(resolveRecipe(given)).toEqual(
    resolveRecipe({
      stages: [
        { experts: { keep: 3 } },
        { weights: { method: 'wanda' } },
        { recover: { epochs: 2 } },
        { quantize: { values: 'int8' } },
      ],
    }),
  );
});

test('options name the way to what is wrong', () => {
  const stages = [{ weights: { sparsity: 2 } }] as RecipeOptions['stages'];
  expect(errorOf(() => resolveRecipe({ stages }))).toMatchObject({ code: 'USAGE', field: 'stages.0.weights.sparsity' });
  expect(errorOf(() => resolveRecipe({ sparsity: 2 }))).toMatchObject({ code: 'USAGE', field: 'sparsity' });
});
