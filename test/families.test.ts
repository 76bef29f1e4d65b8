import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { EspalierError } from '../lib/errors.ts';
import { ConfigFields } from '../lib/models/config.ts';
import { describeModel } from '../lib/models/registry.ts';
import { readRope } from '../lib/models/rope.ts';
import type { LayerSpec, WeightSource } from '../lib/models/spec.ts';
import { countParameters, expertMatrices } from '../lib/models/targets.ts';
import type { CheckpointTensors } from '../lib/models/weights.ts';

type Json = Record<string, unknown>;
type Header = Map<string, { shape: number[]; dtype: string }>;

const golden = new URL('./golden/', import.meta.url);
const readJson = <T = Json>(url: URL): T => JSON.parse(readFileSync(url, 'utf8')) as T;

/** Reads the tensor table of every safetensors file in a folder, on its own: length, JSON, nothing checked. */
function headersOf(folder: URL): Header {
  const tensors: Header = new Map();
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.safetensors'))) {
    const bytes = readFileSync(new URL(file, folder));
    const header = JSON.parse(bytes.toString('utf8', 8, 8 + Number(bytes.readBigUInt64LE(0)))) as Json;
    for (const [name, entry] of Object.entries(header)) {
      if (name !== '__metadata__') tensors.set(name, entry as { shape: number[]; dtype: string });
    }
  }
  return tensors;
}

const asCheckpoint = (tensors: Header): CheckpointTensors => ({
  has: (name) => tensors.has(name),
  get: (name) => tensors.get(name),
  names: () => tensors.keys(),
});

function family(name: string): { config: Json; tensors: Header; folder: URL } {
  const folder = new URL(`families/${name}/`, golden);
  return { config: readJson(new URL('config.json', folder)), tensors: headersOf(folder), folder };
}

const describeFamily = (name: string, changes: Json = {}, edit: (tensors: Header) => void = () => {}) => {
  const { config, tensors } = family(name);
  edit(tensors);
  return describeModel({ ...config, ...changes }, asCheckpoint(tensors));
};

function failure(action: () => unknown): EspalierError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(EspalierError);
    return error as EspalierError;
  }
  throw new Error('nothing was thrown');
}

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

interface RopeCase {
  name: string;
  headDim: number;
  config: Json & { rope_parameters: Json };
  inverseFrequencies: number[];
  scale: number;
}

describe('rotary frequencies', () => {
  const cases = readJson<RopeCase[]>(new URL('rope.json', golden));
  const rope = (config: Json, headDim: number) => {
    const fields = new ConfigFields(config);
    return { ...readRope(fields, headDim, 1e4), warnings: fields.warnings };
  };
  const plain = { max_position_embeddings: 4096 };

  test('there are cases of every scaling', () => {
    expect(new Set(cases.map(({ config }) => config.rope_parameters.rope_type))).toEqual(
      new Set(['default', 'linear', 'yarn', 'llama3']),
    );
  });

  for (const { name, headDim, config, inverseFrequencies, scale } of cases) {
    test(`${name}: to the last float32 places of transformers, from either spelling`, () => {
      const { rope_theta, rope_type, ...others } = config.rope_parameters;
      const { rope_parameters: _, ...outside } = config;
      const old = {
        ...outside,
        rope_theta,
        rope_scaling: rope_type === 'default' ? null : { type: rope_type, ...others },
      };
      const nested = { full_attention: config.rope_parameters, sliding_attention: { ...config.rope_parameters } };
      for (const spelling of [config, old, { ...outside, rope_parameters: nested }]) {
        const found = rope(spelling, headDim);
        expect(found.warnings).toEqual([]);
        expect(found.inverseFrequencies).toHaveLength(headDim / 2);
        expect(found.scale).toBeCloseTo(scale, 12);
        for (const [i, expected] of inverseFrequencies.entries()) {
          // Two units in the last place: torch's vector pow is not the correctly rounded one.
          expect(Math.abs(found.inverseFrequencies[i]! / expected - 1)).toBeLessThanOrEqual(2 ** -22);
        }
      }
    });
  }

  test('a config that says nothing has the theta of its family', () => {
    expect(rope(plain, 4).inverseFrequencies[1]).toBe(Math.fround(0.01));
    expect(describeFamily('mixtral-fused', { rope_parameters: null }).spec.rope.inverseFrequencies[8]).toBeCloseTo(
      1e-3,
      9,
    );
  });

  test('the extension of linear and yarn counts towards the positions', () => {
    const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 4096 };
    expect(rope({ ...plain, rope_scaling: yarn }, 16).maxPositions).toBe(16384);
    expect(rope({ ...plain, rope_scaling: { type: 'linear', factor: 2 } }, 16).maxPositions).toBe(8192);
    expect(rope(plain, 16).maxPositions).toBe(4096);
  });

  test('contradictions are told, and the choice is that of transformers', () => {
    const twice = rope({ ...plain, rope_theta: 100, rope_parameters: { rope_theta: 10_000 } }, 4);
    expect(twice.inverseFrequencies[1]).toBe(Math.fround(0.01));
    expect(twice.warnings).toHaveLength(1);
    const both = { rope_scaling: { type: 'linear', factor: 2 }, rope_parameters: { rope_type: 'linear', factor: 4 } };
    expect(rope({ ...plain, ...both }, 4).inverseFrequencies[0]).toBe(0.5);
    expect(rope({ ...plain, ...both }, 4).warnings.join()).toContain('rope_scaling is used');
    const useless = rope({ ...plain, rope_parameters: { rope_type: 'default', factor: 8 } }, 4);
    expect([useless.inverseFrequencies[0], useless.warnings.length]).toEqual([1, 1]);
    expect(useless.warnings[0]).toContain('factor');
  });

  const refused: [string, Json, string][] = [
    ['dynamic', { rope_scaling: { type: 'dynamic', factor: 2 } }, 'rope_scaling.rope_type'],
    ['longrope', { rope_parameters: { rope_type: 'longrope', factor: 2 } }, 'rope_parameters.rope_type'],
    ['a string', { rope_parameters: 'yarn' }, 'rope_parameters'],
    ['no factor', { rope_parameters: { rope_type: 'linear' } }, 'rope_parameters.factor'],
    ['a negative factor', { rope_parameters: { rope_type: 'linear', factor: -1 } }, 'rope_parameters.factor'],
    ['theta NaN', { rope_theta: Number.NaN }, 'rope_theta'],
    ['theta Infinity', { rope_parameters: { rope_theta: Number.POSITIVE_INFINITY } }, 'rope_parameters.rope_theta'],
    ['theta 0', { rope_theta: 0 }, 'rope_theta'],
    ['theta as text', { rope_theta: '10000' }, 'rope_theta'],
    ['half rotation', { partial_rotary_factor: 0.5 }, 'partial_rotary_factor'],
    [
      'half rotation inside',
      { rope_parameters: { partial_rotary_factor: 0.5 } },
      'rope_parameters.partial_rotary_factor',
    ],
    ['no positions', { max_position_embeddings: 0 }, 'max_position_embeddings'],
    [
      'layer types that differ',
      { rope_parameters: { full_attention: { rope_theta: 1e6 }, sliding_attention: { rope_theta: 1e4 } } },
      'rope_parameters',
    ],
    [
      'a mixture of nestings',
      { rope_parameters: { full_attention: { rope_theta: 1e6 }, rope_theta: 1e4 } },
      'rope_parameters',
    ],
    [
      'bands the wrong way round',
      { rope_parameters: { rope_type: 'llama3', factor: 8, low_freq_factor: 4, high_freq_factor: 1 } },
      'rope_parameters.high_freq_factor',
    ],
  ];
  test.each(refused)('%s is refused by name', (_, config, field) => {
    const error = failure(() => rope({ ...plain, ...config }, 16));
    expect([error.code, error.field]).toEqual(['CONFIG', field]);
  });
});

describe('what a config asks for and Espalier lacks', () => {
  const lacking: [string, Json, string][] = [
    ['mixtral-window', { hidden_act: 'gelu' }, 'hidden_act'],
    ['mixtral-window', { attention_bias: true }, 'attention_bias'],
    ['mixtral-window', { mlp_bias: true }, 'mlp_bias'],
    ['mixtral-window', { norm_topk_prob: false }, 'norm_topk_prob'],
    ['mixtral-window', { scoring_func: 'sigmoid' }, 'scoring_func'],
    ['mixtral-window', { n_group: 3 }, 'n_group'],
    ['mixtral-window', { moe_layer_freq: 0 }, 'moe_layer_freq'],
    ['mixtral-window', { final_logit_softcapping: 30 }, 'final_logit_softcapping'],
    ['mixtral-window', { per_layer_config: { 0: { sliding_window: 4 } } }, 'per_layer_config'],
    ['mixtral-window', { quantization_config: { quant_method: 'gptq', bits: 4 } }, 'quantization_config.quant_method'],
    ['mixtral-window', { quantization_config: {} }, 'quantization_config.quant_method'],
    ['olmoe-clip', { sliding_window: 8 }, 'sliding_window'],
    ['olmoe-clip', { head_dim: 32 }, 'head_dim'],
    ['qwen2-moe-window', { attention_bias: true }, 'attention_bias'],
    ['qwen3-moe-bias', { shared_expert_intermediate_size: 64 }, 'shared_expert_intermediate_size'],
    ['qwen3-moe-bias', { decoder_sparse_step: 0 }, 'decoder_sparse_step'],
  ];
  test.each(lacking)('%s with %j is a CONFIG error that names the field', (name, changes, field) => {
    const error = failure(() => describeFamily(name, changes));
    expect([error.code, error.field, error.exitCode]).toEqual(['CONFIG', field, 2]);
    expect(error.message).toContain(field);
  });

  test('values that ask for nothing pass without a word', () => {
    const neutral = {
      hidden_act: 'silu',
      mlp_bias: false,
      attention_bias: false,
      n_group: 1,
      routed_scaling_factor: 1.0,
      final_logit_softcapping: null,
      initializer_range: 0.1,
      use_cache: false,
      torch_dtype: 'float32',
      temperature: 0.7,
      per_layer_config: {},
      quantization_config: null,
      id2label: { 0: 'a' },
      unknown_but_null: null,
    };
    expect(describeFamily('mixtral-window', neutral).warnings).toEqual([]);
    expect(describeFamily('mixtral-window', { quantization_config: { quant_method: 'espalier' } }).warnings).toEqual(
      [],
    );
  });

  test('unknown fields are named in a warning', () => {
    const { warnings } = describeFamily('olmoe-clip', { use_magic: true, expert_dropout_schedule: [1] });
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain('use_magic, expert_dropout_schedule');
  });

  test('tensors that nothing uses are named in a warning', () => {
    const extra = (name: string) => (tensors: Header) => void tensors.set(name, { shape: [64], dtype: 'BF16' });
    const bias = 'model.layers.0.self_attn.q_proj.bias';
    expect(describeFamily('mixtral-window', {}, extra(bias)).warnings.join()).toContain(bias);
    const table = 'model.layers.0.self_attn.rotary_emb.inv_freq';
    expect(describeFamily('mixtral-window', {}, extra(table)).warnings).toEqual([]);
  });
});

describe('hostile configs (quick, named, nothing allocated)', () => {
  const wrong: [Json, string][] = [];
  for (const value of [0, -1, 1e9, 2.5, '8', [8], {}, true, Number.NaN, 2 ** 53]) {
    for (const field of [
      'num_local_experts',
      'num_hidden_layers',
      'num_experts_per_tok',
      'hidden_size',
      'num_attention_heads',
    ]) {
      wrong.push([{ [field]: value }, field]);
    }
  }
  wrong.push(
    [{ num_experts_per_tok: 5 }, 'num_experts_per_tok'],
    [{ head_dim: 1e7 }, 'head_dim'],
    [{ hidden_size: 2 ** 24, num_attention_heads: 1, num_key_value_heads: 1 }, 'head_dim'],
    [{ num_key_value_heads: 3 }, 'num_key_value_heads'],
    [{ num_key_value_heads: 8 }, 'num_key_value_heads'],
    [{ rope_theta: Number.NaN }, 'rope_theta'],
    [{ rms_norm_eps: -1 }, 'rms_norm_eps'],
    [{ sliding_window: 0 }, 'sliding_window'],
    [{ vocab_size: 2 ** 40 }, 'vocab_size'],
    [{ tie_word_embeddings: 'no' }, 'tie_word_embeddings'],
    [{ architectures: undefined }, 'architectures'],
    [{ architectures: [] }, 'architectures'],
    [{ architectures: 'MixtralForCausalLM' }, 'architectures'],
    [{ architectures: ['MixtralForSequenceClassification'] }, 'architectures'],
    [{ architectures: ['OlmoeForCausalLM'] }, 'architectures'],
    [{ model_type: 'llama' }, 'model_type'],
    [{ model_type: 7 }, 'model_type'],
  );
  test.each(wrong)('%j', (changes, field) => {
    const started = performance.now();
    const error = failure(() => describeFamily('mixtral-window', changes));
    expect(performance.now() - started).toBeLessThan(1000);
    expect([error.code, error.field, error.exitCode]).toEqual(['CONFIG', field, 2]);
    expect(error.message).toMatch(/must be/);
    expect(error.message.length).toBeLessThan(400);
  });

  for (const config of [null, [], 'x', 7, undefined]) {
    test(`a config that is ${JSON.stringify(config)}`, () => {
      expect(failure(() => describeModel(config, asCheckpoint(new Map()))).code).toBe('CONFIG');
    });
  }

  test('an unknown family lists the known ones', () => {
    const { message } = failure(() => describeFamily('mixtral-window', { model_type: 'llama' }));
    for (const name of ['mixtral', 'olmoe', 'qwen2_moe', 'qwen3_moe']) expect(message).toContain(`"${name}"`);
  });

  test('code that a checkpoint brings is ignored with a warning', () => {
    const marker = 'globalThis.hijacked = true';
    const { warnings } = describeFamily('mixtral-window', {
      auto_map: { AutoModel: `modeling.${marker}` },
      trust_remote_code: true,
      sparsity_config: { format: 'x' },
    });
    expect(warnings).toHaveLength(3);
    for (const field of ['auto_map', 'trust_remote_code', 'sparsity_config']) {
      expect(warnings.filter((warning) => warning.includes(`${field} is ignored`))).toHaveLength(1);
    }
    expect(globalThis).not.toHaveProperty('hijacked');
  });

  test('names of Object.prototype are plain unknown fields', () => {
    const { config, tensors } = family('mixtral-window');
    const hostile = JSON.parse(
      `{"__proto__": {"num_local_experts": 3}, "constructor": 1, ${JSON.stringify(config).slice(1)}`,
    );
    const { spec, warnings } = describeModel(hostile, asCheckpoint(tensors));
    expect(warnings[0]).toContain('__proto__, constructor');
    expect([...expertMatrices(spec)]).toHaveLength(2 * 4 * 3);
  });
});

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
