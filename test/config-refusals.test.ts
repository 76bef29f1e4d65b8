/** Configs that are refused: they ask for what there is not, or for what cannot be. */
import { describe, expect, test } from 'vitest';
import { describeModel } from '../lib/models/registry.ts';
import { expertMatrices } from '../lib/models/targets.ts';
import { asCheckpoint, describeFamily, failure, family, type Header, type Json } from './support/families.ts';

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
