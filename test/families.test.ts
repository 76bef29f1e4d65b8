/** What a checkpoint of each family is: its layers, weights, options, and how many parameters it has. */
import { existsSync, readdirSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { describeModel } from '../lib/models/registry.ts';
import type { LayerSpec, WeightSource } from '../lib/models/spec.ts';
import { countParameters, expertMatrices } from '../lib/models/targets.ts';
import {
  asCheckpoint,
  describeFamily,
  failure,
  family,
  golden,
  type Header,
  headersOf,
  type Json,
  readJson,
} from './support/families.ts';

function* sourcesOf(layer: LayerSpec): Generator<WeightSource> {
  for (const value of Object.values(layer.attention)) if (typeof value === 'object') yield value;
  yield layer.attentionNorm;
  yield layer.feedForwardNorm;
  for (const part of layer.feedForward) {
    if (part.kind === 'dense') {
      yield* [part.mlp.gate, part.mlp.up, part.mlp.down];
      if (part.gate) yield part.gate;
    } else {
      yield part.router.weight;
      for (const { gate, up, down } of part.experts) yield* [gate, up, down];
    }
  }
}

interface GoldenLayer {
  window: number;
  headDim: number;
  experts: number;
  qBias: boolean;
  oBias: boolean;
}

const familyNames = readdirSync(new URL('families/', golden));

describe('a checkpoint that transformers wrote', () => {
  test('there is one of every family', () => {
    expect(familyNames.length).toBeGreaterThanOrEqual(9);
  });

  for (const name of familyNames) {
    test(`${name}: every layer is what transformers makes of the config`, () => {
      const { spec, warnings } = describeFamily(name);
      const { layers } = readJson<{ layers: GoldenLayer[] }>(new URL(`families/${name}/golden.json`, golden));
      expect(warnings).toEqual([]);
      const found = spec.layers.map(({ attention, feedForward }) => {
        const routed = feedForward.find((part) => part.kind === 'routed');
        return {
          window: attention.window,
          headDim: attention.headDim,
          experts: routed?.experts.length ?? 0,
          qBias: attention.qBias !== undefined,
          oBias: attention.oBias !== undefined,
        };
      });
      expect(found).toEqual(layers);
    });

    test(`${name}: the spec uses every byte of the file exactly once`, () => {
      const { tensors } = family(name);
      const { spec } = describeFamily(name);
      const rows = new Map([...tensors.keys()].map((tensor) => [tensor, 0]));
      const all = [spec.embedding, spec.finalNorm, ...spec.layers.flatMap((layer) => [...sourcesOf(layer)])];
      if (spec.head !== spec.embedding) all.push(spec.head);
      for (const { tensor, shape, slice } of all) {
        const stored = tensors.get(tensor)!.shape;
        expect(slice?.of ?? shape).toEqual(stored);
        rows.set(tensor, rows.get(tensor)! + shape[0]!);
      }
      for (const [tensor, count] of rows) {
        const stored = tensors.get(tensor)!.shape;
        expect([tensor, count]).toEqual([tensor, stored.length === 3 ? stored[0]! * stored[1]! : stored[0]]);
      }
    });
  }

  test('the embedded model', () => {
    const folder = new URL('../models/demo/', import.meta.url);
    const { spec, warnings } = describeModel(
      readJson(new URL('config.json', folder)),
      asCheckpoint(headersOf(folder)),
      { generationConfig: readJson(new URL('generation_config.json', folder)) },
    );
    expect(warnings).toEqual([]);
    expect(spec).toMatchObject({ family: 'mixtral', hiddenSize: 192, bosTokenId: 0, eosTokenIds: [0] });
    expect([...expertMatrices(spec)]).toHaveLength(4 * 8 * 3);
  });

  const shared = new URL('../../shared/models/', import.meta.url);
  test.skipIf(!existsSync(shared))('the shared models (skipped where ../shared is absent)', () => {
    for (const name of ['mixtral-30m', 'olmoe-17m']) {
      const folder = new URL(`${name}/`, shared);
      const { warnings } = describeModel(readJson(new URL('config.json', folder)), asCheckpoint(headersOf(folder)));
      expect(warnings).toEqual([]);
    }
  });
});

describe('details of the families', () => {
  test('fused experts are slices, gate rows before up rows', () => {
    const { spec } = describeFamily('mixtral-fused');
    const part = spec.layers[1]!.feedForward[0]!;
    if (part.kind !== 'routed') throw new Error('not routed');
    const tensor = 'model.layers.1.mlp.experts.gate_up_proj';
    expect(part.experts[5]).toEqual({
      gate: { tensor, shape: [32, 64], slice: { of: [6, 64, 64], expert: 5, row: 0 } },
      up: { tensor, shape: [32, 64], slice: { of: [6, 64, 64], expert: 5, row: 32 } },
      down: {
        tensor: 'model.layers.1.mlp.experts.down_proj',
        shape: [64, 32],
        slice: { of: [6, 64, 32], expert: 5, row: 0 },
      },
    });
  });

  test('Mixtral stores gate, up and down as w1, w3 and w2', () => {
    const { spec } = describeFamily('mixtral-window');
    const first = [...expertMatrices(spec)].slice(0, 3).map(({ role, source }) => [role, source.tensor]);
    const experts = 'model.layers.0.block_sparse_moe.experts.0';
    expect(first).toEqual([
      ['gate', `${experts}.w1.weight`],
      ['up', `${experts}.w3.weight`],
      ['down', `${experts}.w2.weight`],
    ]);
  });

  test('gates are renormalised as each family says', () => {
    const renormalise = (name: string, changes: Json = {}) =>
      describeFamily(name, changes).spec.layers.flatMap(({ feedForward }) =>
        feedForward.flatMap((part) => (part.kind === 'routed' ? [part.router.renormalise] : [])),
      );
    expect(renormalise('mixtral-window')).toEqual([true, true]);
    expect(renormalise('olmoe-clip')).toEqual([true, true]);
    expect(renormalise('olmoe-clip', { norm_topk_prob: false })).toEqual([false, false]);
    expect(renormalise('olmoe-clip', { norm_topk_prob: null })).toEqual([false, false]);
    expect(renormalise('qwen2-moe-window')).toEqual([true, true]);
  });

  test('q and k norms: none, one head, or the whole projection', () => {
    const norm = (name: string) => {
      const { qNorm, kNorm } = describeFamily(name).spec.layers[0]!.attention;
      return [qNorm?.shape, kNorm?.shape];
    };
    expect(norm('mixtral-window')).toEqual([undefined, undefined]);
    expect(norm('qwen3-moe-yarn')).toEqual([[16], [16]]);
    expect(norm('olmoe-clip')).toEqual([[64], [32]]);
  });

  test('the clamp of OLMoE', () => {
    expect(describeFamily('olmoe-clip').spec.layers[0]!.attention.clip).toBe(1);
    expect(describeFamily('olmoe-bias').spec.layers[0]!.attention.clip).toBe(0);
    expect(failure(() => describeFamily('olmoe-clip', { clip_qkv: 0 })).field).toBe('clip_qkv');
  });

  test('the shared expert of Qwen2-MoE has its own width and gate, and dense layers have neither', () => {
    const { spec } = describeFamily('qwen2-moe-dense-layer');
    const [routed, shared] = spec.layers[0]!.feedForward;
    expect(routed!.kind).toBe('routed');
    expect(shared).toMatchObject({
      kind: 'dense',
      gate: { tensor: 'model.layers.0.mlp.shared_expert_gate.weight', shape: [1, 64] },
      mlp: { gate: { tensor: 'model.layers.0.mlp.shared_expert.gate_proj.weight', shape: [40, 64] } },
    });
    expect(spec.layers[1]!.feedForward).toHaveLength(1);
    expect(spec.layers[1]!.feedForward[0]).not.toHaveProperty('gate');
    expect(spec.layers[1]!.feedForward[0]).toMatchObject({ mlp: { gate: { shape: [48, 64] } } });
  });

  test('tied ends share one source; where both are stored, both are used', () => {
    const tied = describeFamily('qwen3-moe-yarn').spec;
    expect(tied.head).toBe(tied.embedding);
    const both = describeFamily('qwen3-moe-yarn', {}, (tensors) => {
      tensors.set('lm_head.weight', { shape: [128, 64], dtype: 'BF16' });
    }).spec;
    expect(both.head.tensor).toBe('lm_head.weight');
    const onlyHead = describeFamily('mixtral-window', { tie_word_embeddings: true }, (tensors) => {
      tensors.delete('model.embed_tokens.weight');
    }).spec;
    expect(onlyHead.embedding.tensor).toBe('lm_head.weight');
    const untied = failure(() => describeFamily('qwen3-moe-yarn', { tie_word_embeddings: false }));
    expect([untied.code, untied.tensor]).toEqual(['MISMATCH', 'lm_head.weight']);
  });

  test('both names of the number of experts are read, and must agree', () => {
    const { num_local_experts, ...rest } = family('qwen3-moe-fused').config;
    const tensors = asCheckpoint(family('qwen3-moe-fused').tensors);
    expect(num_local_experts).toBe(6);
    expect(describeModel({ ...rest, num_experts: 6 }, tensors).warnings).toEqual([]);
    expect(failure(() => describeModel({ ...rest, num_experts: 6, num_local_experts: 5 }, tensors)).code).toBe(
      'CONFIG',
    );
    expect(failure(() => describeModel(rest, tensors)).field).toBe('num_experts');
  });

  test('end-of-sequence ids: a number, a list, none, and generation_config.json before config.json', () => {
    const { config, tensors } = family('qwen3-moe-yarn');
    const ids = (changes: Json, generationConfig?: unknown) =>
      describeModel({ ...config, ...changes }, asCheckpoint(tensors), { generationConfig }).spec.eosTokenIds;
    expect(ids({})).toEqual([2, 5]);
    expect(ids({ eos_token_id: 7 })).toEqual([7]);
    expect(ids({ eos_token_id: null })).toEqual([]);
    expect(ids({ eos_token_id: 7 }, { eos_token_id: [8, 9] })).toEqual([8, 9]);
    expect(ids({ eos_token_id: 7 }, { bos_token_id: 0 })).toEqual([7]);
    expect(failure(() => ids({ eos_token_id: '7' })).field).toBe('eos_token_id');
    const beyond = describeModel({ ...config, eos_token_id: [2, 500] }, asCheckpoint(tensors));
    expect(beyond.spec.eosTokenIds).toEqual([2]);
    expect(beyond.warnings.join()).toContain('500');
  });

  test('sliding windows of Qwen come and go with use_sliding_window', () => {
    const windows = (name: string, changes: Json) =>
      describeFamily(name, changes).spec.layers.map(({ attention }) => attention.window);
    expect(windows('qwen3-moe-fused', { use_sliding_window: false })).toEqual([0, 0]);
    expect(windows('qwen2-moe-window', { use_sliding_window: false })).toEqual([0, 0, 0, 0]);
    expect(windows('qwen2-moe-window', { max_window_layers: 1 })).toEqual([6, 0, 0, 0]);
    const [s, f] = ['sliding_attention', 'full_attention'];
    expect(windows('qwen2-moe-window', { layer_types: [f, s, s, f] })).toEqual([0, 6, 6, 0]);
    for (const changes of [{ layer_types: [f, s] }, { layer_types: [f, s, s, 'chunked_attention'] }]) {
      expect(failure(() => windows('qwen2-moe-window', changes)).field).toBe('layer_types');
    }
    expect(failure(() => windows('mixtral-window', { layer_types: [f, s] })).field).toBe('layer_types');
  });

  test('head_dim is derived where it is absent or null', () => {
    expect(describeFamily('mixtral-window').spec.layers[0]!.attention.headDim).toBe(16);
    const odd = failure(() => describeFamily('mixtral-window', { hidden_size: 66 }));
    expect(odd.message).toContain('hidden_size 66 / 4 heads');
  });
});

describe('published models', () => {
  interface Published {
    config: Json;
    parameters: number;
    outside: Record<string, number[]>;
    everyLayer: Record<string, number[]>;
  }
  const published = readJson<Record<string, Published>>(new URL('published.json', golden));
  const describePublished = (name: string) => {
    const { config, outside, everyLayer } = published[name]!;
    const tensors: Header = new Map();
    for (const [tensor, shape] of Object.entries(outside)) tensors.set(tensor, { shape, dtype: 'BF16' });
    for (let layer = 0; layer < (config.num_hidden_layers as number); layer++) {
      for (const [tensor, shape] of Object.entries(everyLayer)) {
        tensors.set(`model.layers.${layer}.${tensor}`, { shape, dtype: 'BF16' });
      }
    }
    return describeModel(config, asCheckpoint(tensors));
  };

  // Active parameters by hand: 2·vocab·hidden + layers · (attention + router + top-k experts [+ shared] + norms) + norm.
  const active: Record<string, number> = {
    'Mixtral-8x7B':
      2 * 32000 * 4096 + 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096 + 2 * 3 * 4096 * 14336 + 2 * 4096) + 4096,
    'OLMoE-1B-7B': 2 * 50304 * 2048 + 16 * (4 * 2048 * 2048 + 64 * 2048 + 8 * 3 * 2048 * 1024 + 4 * 2048) + 2048,
    'Qwen1.5-MoE-A2.7B':
      2 * 151936 * 2048 +
      24 * (4 * 2048 * 2048 + 3 * 2048 + 60 * 2048 + 4 * 3 * 2048 * 1408 + 3 * 2048 * 5632 + 2048 + 2 * 2048) +
      2048,
    'Qwen3-30B-A3B':
      2 * 151936 * 2048 +
      48 * (2 * 2048 * 4096 + 2 * 2048 * 512 + 2 * 128 + 128 * 2048 + 8 * 3 * 2048 * 768 + 2 * 2048) +
      2048,
  };

  test.each(Object.keys(published))('%s: as many parameters as transformers counts', (name) => {
    const { spec, warnings } = describePublished(name);
    expect(warnings).toEqual([]);
    const counts = countParameters(spec);
    expect(counts.total).toBe(published[name]!.parameters);
    expect(counts.active).toBe(active[name]);
    const matrices = [...expertMatrices(spec)].reduce((sum, { source: { shape } }) => sum + shape[0]! * shape[1]!, 0);
    expect(counts.experts).toBe(matrices);
    expect(counts.experts / counts.total).toBeGreaterThan(0.8);
  });
});
