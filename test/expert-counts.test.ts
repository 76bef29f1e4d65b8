/** Layers that differ in their experts, and rows that share them, as config.json says. */
import { describe, expect, test } from 'vitest';
import { stateExperts } from '../lib/models/experts-config.ts';
import { describeFamily, failure, type Header, type Json } from './support/families.ts';

/** mixtral-window has 2 layers of 4 experts, 2 for each token. */
const experts = (layer: number) => `model.layers.${layer}.block_sparse_moe`;

/** Leaves a layer so many experts and router rows. */
const shrink =
  (layer: number, kept: number, rows = kept) =>
  (tensors: Header) => {
    for (let e = kept; e < 4; e++)
      for (const w of ['w1', 'w2', 'w3']) tensors.delete(`${experts(layer)}.experts.${e}.${w}.weight`);
    tensors.set(`${experts(layer)}.gate.weight`, { shape: [rows, 64], dtype: 'BF16' });
  };

function routed(changes: Json, edit: (tensors: Header) => void) {
  const { spec, warnings } = describeFamily('mixtral-window', changes, edit);
  expect(warnings).toEqual([]);
  return spec.layers.map(({ feedForward: [part] }) => {
    if (part?.kind !== 'routed') throw new Error('the layer must be routed');
    const { weight, topK, expertOfRow } = part.router;
    return { rows: weight.shape[0], topK, expertOfRow, experts: part.experts.length };
  });
}

test('a list gives each layer its number of experts, and a layer of few takes them all', () => {
  expect(routed({ num_local_experts: [1, 3] }, (t) => [shrink(0, 1), shrink(1, 3)].map((edit) => edit(t)))).toEqual([
    { rows: 1, topK: 1, expertOfRow: [0], experts: 1 },
    { rows: 3, topK: 2, expertOfRow: [0, 1, 2], experts: 3 },
  ]);
});

test('a map leads several router rows to one expert', () => {
  const map = [[1, 0, 1, 0], null];
  expect(routed({ num_local_experts: [2, 4], expert_of_row: map }, (t) => shrink(0, 2, 4)(t))).toEqual([
    { rows: 4, topK: 2, expertOfRow: [1, 0, 1, 0], experts: 2 },
    { rows: 4, topK: 2, expertOfRow: [0, 1, 2, 3], experts: 4 },
  ]);
});

test('of layers without experts a list says nothing', () => {
  const { spec } = describeFamily('qwen2-moe-dense-layer', { num_experts: [4, 0, 4] });
  expect(spec.layers.map(({ feedForward }) => feedForward[0]!.kind)).toEqual(['routed', 'dense', 'routed']);
});

describe('what cannot be is a CONFIG error that names the field', () => {
  const wrong: [string, Json, string][] = [
    ['too short a list', { num_local_experts: [4] }, 'num_local_experts'],
    ['a number that is none', { num_local_experts: [4, 2.5] }, 'num_local_experts'],
    ['no experts in a layer that has them', { num_local_experts: [4, 0] }, 'num_local_experts'],
    ['other names that contradict', { num_local_experts: [4, 4], num_experts: [4, 3] }, 'num_local_experts'],
    ['a list that contradicts a number', { num_local_experts: [4, 4], num_experts: 4 }, 'num_local_experts'],
    ['a map for one layer', { expert_of_row: [[0, 1, 2, 3]] }, 'expert_of_row'],
    ['a map that is none', { expert_of_row: [[0, 1, 2, 3], 'x'] }, 'expert_of_row'],
    ['a map to an expert that is not there', { expert_of_row: [[0, 1, 2, 4], null] }, 'expert_of_row'],
    ['a map that leaves experts out', { expert_of_row: [[0, 1, 2, 2], null] }, 'expert_of_row'],
    ['a map with half an expert', { expert_of_row: [[0, 1, 2, 0.5], null] }, 'expert_of_row'],
    ['an empty map', { expert_of_row: [[], null] }, 'expert_of_row'],
  ];
  test.each(wrong)('%s', (_, changes, field) => {
    const error = failure(() => describeFamily('mixtral-window', changes));
    expect([error.code, error.field]).toEqual(['CONFIG', field]);
  });

  test('a list that the tensors do not bear out is a MISMATCH that names the layer', () => {
    const error = failure(() => describeFamily('mixtral-window', { num_local_experts: [4, 3] }));
    expect(error.code).toBe('MISMATCH');
    expect(error.message).toContain('layer 1');
  });
});

describe('what pruning writes into a config', () => {
  const config = { num_experts: 8, num_experts_per_tok: 4 };

  test('one number where layers have as many', () => {
    const { fields, warnings } = stateExperts(config, [{ experts: 6 }, undefined, { experts: 6 }]);
    expect([...fields]).toEqual([['num_experts', 6]]);
    expect(warnings).toEqual([]);
  });

  test('a list where they differ, with a warning', () => {
    const { fields, warnings } = stateExperts(config, [{ experts: 6 }, undefined, { experts: 5 }]);
    expect([...fields]).toEqual([['num_experts', [6, 0, 5]]]);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain('only Espalier loads');
  });

  test('both names of the number, where both stand there', () => {
    const both = { ...config, num_local_experts: 8 };
    expect([...stateExperts(both, [{ experts: 6 }]).fields.keys()]).toEqual(['num_experts', 'num_local_experts']);
  });

  test('the map of rows to experts, with a warning', () => {
    const { fields, warnings } = stateExperts(config, [{ experts: 2, expertOfRow: [0, 1, 1, 0] }, { experts: 2 }]);
    expect(fields.get('expert_of_row')).toEqual([[0, 1, 1, 0], null]);
    expect(fields.get('num_experts')).toBe(2);
    expect(warnings[0]).toContain('expert_of_row');
  });

  test('a top k that no layer can serve is lowered, with a warning', () => {
    const { fields, warnings } = stateExperts(config, [{ experts: 3 }, { experts: 3 }]);
    expect(fields.get('num_experts_per_tok')).toBe(3);
    expect(warnings.join()).toContain('now goes to 3');
    const uneven = stateExperts(config, [{ experts: 3 }, { experts: 5 }]);
    expect(uneven.fields.has('num_experts_per_tok')).toBe(false);
    expect(uneven.warnings.join()).toContain('a layer keeps only 3');
  });
});
