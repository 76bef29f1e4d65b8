/** Tensors that a config does not describe. */
import { describe, expect, test } from 'vitest';
import { describeModel } from '../lib/models/registry.ts';
import { asCheckpoint, describeFamily, failure, family, type Header, type Json } from './support/families.ts';

describe('tensors that do not fit the config', () => {
  const experts = (layer: number) => `model.layers.${layer}.block_sparse_moe.experts`;
  const weights = ['w1', 'w2', 'w3'];
  const mismatches: [string, string, Json, (tensors: Header) => void, RegExp][] = [
    [
      'an expert too few',
      'mixtral-window',
      {},
      (t) => {
        for (const w of weights) t.delete(`${experts(1)}.2.${w}.weight`);
      },
      /layer 1: .*holds 3 experts \(expert 2 is missing\).*says 4/,
    ],
    [
      'an expert too many',
      'mixtral-window',
      {},
      (t) => {
        for (const w of weights) t.set(`${experts(1)}.4.${w}.weight`, { shape: [48, 64], dtype: 'BF16' });
      },
      /layer 1: .*holds 5 experts \(up to expert 4\).*says 4/,
    ],
    [
      'one fewer in the config',
      'mixtral-window',
      { num_local_experts: 3 },
      () => {},
      /layer 0: .*has 4 rows.*3 experts/,
    ],
    ['one more in the config', 'mixtral-fused', { num_local_experts: 7 }, () => {}, /layer 0: .*has 6 rows.*7 experts/],
    [
      '60000 in the config',
      'mixtral-window',
      { num_local_experts: 60_000 },
      () => {},
      /layer 0: .*has 4 rows.*60000 experts/,
    ],
    [
      'fewer fused experts than the router has rows',
      'qwen3-moe-fused',
      {},
      (t) => t.set('model.layers.1.mlp.experts.gate_up_proj', { shape: [5, 64, 64], dtype: 'F16' }),
      /layer 1: .*gate_up_proj holds 5 experts.*says 6/,
    ],
    [
      'router rows other than experts',
      'olmoe-clip',
      {},
      (t) => t.set('model.layers.1.mlp.gate.weight', { shape: [7, 64], dtype: 'BF16' }),
      /layer 1: model.layers.1.mlp.gate.weight has 7 rows.*6 experts/,
    ],
    [
      'a router of bytes',
      'olmoe-clip',
      {},
      (t) => t.set('model.layers.1.mlp.gate.weight', { shape: [6, 64], dtype: 'U8' }),
      /layer 1: .*gate.weight has type U8.*BF16, F16, F32/,
    ],
    [
      'a matrix of three dimensions',
      'olmoe-clip',
      {},
      (t) => t.set('model.layers.0.self_attn.q_proj.weight', { shape: [1, 64, 64], dtype: 'BF16' }),
      /layer 0: .*q_proj.weight has shape \[1, 64, 64\].*\[64, 64\]/,
    ],
    [
      'a norm that is a scalar',
      'olmoe-clip',
      {},
      (t) => t.set('model.norm.weight', { shape: [], dtype: 'F32' }),
      /model.norm.weight has shape \[\]/,
    ],
    [
      'an expert with another width',
      'olmoe-clip',
      {},
      (t) => t.set('model.layers.1.mlp.experts.3.down_proj.weight', { shape: [64, 31], dtype: 'BF16' }),
      /layer 1: .*experts.3.down_proj.weight has shape \[64, 31\]/,
    ],
    [
      'a bias that the config promises',
      'qwen3-moe-bias',
      {},
      (t) => t.delete('model.layers.1.self_attn.k_proj.bias'),
      /layer 1: .*k_proj.bias is missing/,
    ],
    ['more layers in the file', 'olmoe-clip', { num_hidden_layers: 1 }, () => {}, /layer 1: .*num_hidden_layers is 1/],
    ['4096 layers in the config', 'olmoe-clip', { num_hidden_layers: 4096 }, () => {}, /layer 2: .*is missing/],
    ['no tensors at all', 'olmoe-clip', {}, (t) => t.clear(), /model.embed_tokens.weight is missing/],
    [
      'an absurd expert number',
      'olmoe-clip',
      {},
      (t) =>
        t.set('model.layers.0.mlp.experts.99999999999999999999.up_proj.weight', { shape: [32, 64], dtype: 'BF16' }),
      /layer 0: .*holds 7 experts/,
    ],
  ];
  test.each(mismatches)('%s', (_, name, changes, edit, message) => {
    const started = performance.now();
    const error = failure(() => describeFamily(name, changes, edit));
    expect(performance.now() - started).toBeLessThan(1000);
    expect(error.code).toBe('MISMATCH');
    expect(error.tensor).toBeDefined();
    expect(error.message).toMatch(message);
  });

  test('128 experts in the config, 127 or 129 in the file', () => {
    const { config, tensors } = family('olmoe-clip');
    const grow = (held: number) => {
      const grown: Header = new Map(tensors);
      for (const layer of [0, 1]) {
        grown.set(`model.layers.${layer}.mlp.gate.weight`, { shape: [128, 64], dtype: 'BF16' });
        for (let expert = 0; expert < (layer === 1 ? held : 128); expert++) {
          const each = `model.layers.${layer}.mlp.experts.${expert}`;
          grown.set(`${each}.gate_proj.weight`, { shape: [32, 64], dtype: 'BF16' });
          grown.set(`${each}.up_proj.weight`, { shape: [32, 64], dtype: 'BF16' });
          grown.set(`${each}.down_proj.weight`, { shape: [64, 32], dtype: 'BF16' });
        }
      }
      return describeModel({ ...config, num_experts: 128 }, asCheckpoint(grown));
    };
    expect(grow(128).spec.layers).toHaveLength(2);
    expect(failure(() => grow(127)).message).toMatch(
      /layer 1: .*holds 127 experts \(expert 127 is missing\).*says 128/,
    );
    expect(failure(() => grow(129)).message).toMatch(/layer 1: .*holds 129 experts.*says 128/);
  });
});
