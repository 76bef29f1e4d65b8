/**
 * Fields of config.json that no family reads: the ones that cannot change the computation, the ones that would change it
 * in a way Espalier lacks, and those that ask to run code. What is in none of these lists is reported as unknown.
 */
import { type ConfigFields, show } from './config.ts';

/** Values under which a field asks for nothing. null and an absent field always ask for nothing. */
const neutralValues: Readonly<Record<string, readonly unknown[]>> = {
  // activation
  hidden_act: ['silu', 'swish'],
  hidden_activation: ['silu', 'swish'],
  swiglu_limit: [],
  // biases
  attention_bias: [false],
  qkv_bias: [false],
  mlp_bias: [false],
  use_bias: [false],
  use_routing_bias: [false],
  moe_router_enable_expert_bias: [false],
  // attention
  sliding_window: [],
  use_sliding_window: [false],
  attention_chunk_size: [],
  clip_qkv: [],
  attn_logit_softcapping: [],
  final_logit_softcapping: [],
  query_pre_attn_scalar: [],
  attention_multiplier: [],
  alibi: [false],
  parallel_attn: [false],
  use_parallel_residual: [false],
  kv_lora_rank: [],
  q_lora_rank: [],
  no_rope_layers: [[]],
  num_kv_shared_layers: [0],
  attn_temperature_tuning: [false],
  // scalings
  embedding_multiplier: [1],
  residual_multiplier: [1],
  logits_scaling: [1],
  logit_scale: [1],
  routed_scaling_factor: [1],
  // routing and feed-forward
  norm_topk_prob: [true],
  scoring_func: ['softmax'],
  n_group: [1],
  topk_group: [1],
  topk_method: ['greedy'],
  n_shared_experts: [0],
  num_shared_experts: [0],
  shared_expert_intermediate_size: [0],
  first_k_dense_replace: [0],
  moe_layer_freq: [1],
  decoder_sparse_step: [1],
  mlp_only_layers: [[]],
  num_nextn_predict_layers: [0],
  // another kind of model
  is_encoder_decoder: [false],
  add_cross_attention: [false],
  cross_attention_hidden_size: [],
  tie_encoder_decoder: [false],
  pruned_heads: [{}],
  per_layer_config: [{}, []],
};

const asksToRunCode = ['auto_map', 'trust_remote_code', 'sparsity_config', 'compression_config', 'custom_pipelines'];

/** Training, bookkeeping, output selection and sampling defaults. */
const harmless = new Set(
  `_name_or_path name_or_path transformers_version tokenizer_class finetuning_task task_specific_params problem_type
   id2label label2id num_labels torch_dtype dtype use_bfloat16 torchscript tf_legacy_loss return_dict use_return_dict
   use_cache output_attentions output_hidden_states output_router_logits keys_to_ignore_at_inference
   _attn_implementation _attn_implementation_autoset attn_implementation _experts_implementation experts_implementation
   use_flash_attention_2 pretraining_tp chunk_size_feed_forward gradient_checkpointing is_decoder prefix
   initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout router_aux_loss_coef
   router_z_loss_coef aux_loss_alpha seq_aux router_jitter_noise pad_token_id sep_token_id unk_token_id
   decoder_start_token_id forced_bos_token_id forced_eos_token_id max_length min_length max_new_tokens min_new_tokens
   do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p
   epsilon_cutoff eta_cutoff repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
   bad_words_ids num_return_sequences output_scores return_dict_in_generate remove_invalid_values
   exponential_decay_length_penalty suppress_tokens begin_suppress_tokens`.split(/\s+/),
);

/** To be called after a family has read what it acts on: judges every field that it did not read. */
export function judgeUnreadFields(config: ConfigFields): void {
  const unknown: string[] = [];
  for (const field of config.unread()) {
    if (harmless.has(field)) continue;
    const value = config.raw(field);
    if (value === undefined) continue;
    if (asksToRunCode.includes(field)) {
      config.warn(`${field} is ignored: Espalier runs no code that a checkpoint brings.`);
      continue;
    }
    const neutral = Object.hasOwn(neutralValues, field) ? neutralValues[field] : undefined;
    if (neutral === undefined) unknown.push(field);
    else if (!neutral.some((allowed) => JSON.stringify(allowed) === JSON.stringify(value))) {
      const allowed = [...neutral.map(show), 'absent'].join(' or ');
      config.fail(field, `is ${show(value)}, which Espalier does not implement for this family`, allowed);
    }
  }
  if (unknown.length > 0) {
    const named = unknown.slice(0, 16).map((field) => field.slice(0, 64));
    const more = unknown.length > named.length ? ` and ${unknown.length - named.length} more` : '';
    config.warn(`fields that Espalier does not know have no effect: ${named.join(', ')}${more}.`);
  }
}

/** Weights packed by another quantiser cannot be read; our own sparse layout is resolved by the checkpoint reader. */
export function refuseForeignQuantization(config: ConfigFields): void {
  const quantization = config.object('quantization_config');
  if (quantization === undefined) return;
  const method = quantization.raw('quant_method');
  if (method !== 'espalier') {
    const found = method === undefined ? 'is missing' : `is ${show(method)}`;
    quantization.fail('quant_method', found, '"espalier"; load the unquantised checkpoint instead');
  }
}
