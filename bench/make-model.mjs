// Writes a Mixtral-type checkpoint with random bf16 weights, for measuring speed at sizes that no test model has.
// node bench/make-model.mjs DIR [--hidden 2048] [--inner 3584] [--layers 4] [--experts 8] [--top-k 2] [--heads 16]
//   [--kv-heads 4] [--vocabulary 4096] [--sparsity 0] [--pattern N:M] [--seed 1]
// Experts are zeroed at random: `sparsity` of their weights, or all but N of each M inputs.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { writeSafetensors } from '../dist/checkpoint/writer.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    hidden: { type: 'string', default: '2048' },
    inner: { type: 'string', default: '3584' },
    layers: { type: 'string', default: '4' },
    experts: { type: 'string', default: '8' },
    'top-k': { type: 'string', default: '2' },
    heads: { type: 'string', default: '16' },
    'kv-heads': { type: 'string', default: '4' },
    vocabulary: { type: 'string', default: '4096' },
    sparsity: { type: 'string', default: '0' },
    pattern: { type: 'string', default: '' },
    seed: { type: 'string', default: '1' },
  },
});
const [dir] = positionals;
const number = (name) => Number(values[name]);
const hidden = number('hidden');
const inner = number('inner');
const headDim = hidden / number('heads');
const sparsity = number('sparsity');
const [keep, group] = values.pattern === '' ? [0, 0] : values.pattern.split(':').map(Number);

// xorshift32: only the look of the weights matters.
let state = (number('seed') * 2654435761) >>> 0 || 1;
function next() {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) / 2 ** 32;
}

/** bf16 values of a bell-shaped distribution, of which the weights are drawn. */
function table(scale) {
  const floats = Float32Array.from(
    { length: 4096 },
    () => (next() + next() + next() + next() - 2) * Math.sqrt(3) * scale,
  );
  return Uint16Array.from(new Uint32Array(floats.buffer), (bits) => (bits + 0x8000) >>> 16);
}

function matrix(name, rows, cols, isExpert = false) {
  return {
    name,
    dtype: 'BF16',
    shape: [rows, cols],
    byteLength: rows * cols * 2,
    data() {
      const draw = table(1 / Math.sqrt(cols));
      const data = new Uint16Array(rows * cols);
      for (let i = 0; i < data.length; i++) data[i] = draw[(next() * 4096) | 0] || 1;
      if (isExpert && group > 0) pruneGroups(data);
      else if (isExpert && sparsity > 0) for (let i = 0; i < data.length; i++) if (next() < sparsity) data[i] = 0;
      return new Uint8Array(data.buffer);
    },
  };
}

function pruneGroups(data) {
  for (let first = 0; first < data.length; first += group) {
    let left = keep;
    for (let i = 0; i < group; i++) {
      if (next() * (group - i) < left) left--;
      else data[first + i] = 0;
    }
  }
}

function ones(name, size) {
  return {
    name,
    dtype: 'BF16',
    shape: [size],
    byteLength: size * 2,
    data: () => new Uint8Array(new Uint16Array(size).fill(0x3f80).buffer),
  };
}

const vocabulary = number('vocabulary');
const kvWidth = number('kv-heads') * headDim;
const tensors = [
  matrix('model.embed_tokens.weight', vocabulary, hidden),
  ones('model.norm.weight', hidden),
  matrix('lm_head.weight', vocabulary, hidden),
];
for (let layer = 0; layer < number('layers'); layer++) {
  const at = (name) => `model.layers.${layer}.${name}.weight`;
  tensors.push(ones(at('input_layernorm'), hidden), ones(at('post_attention_layernorm'), hidden));
  tensors.push(matrix(at('self_attn.q_proj'), hidden, hidden), matrix(at('self_attn.o_proj'), hidden, hidden));
  tensors.push(matrix(at('self_attn.k_proj'), kvWidth, hidden), matrix(at('self_attn.v_proj'), kvWidth, hidden));
  tensors.push(matrix(at('block_sparse_moe.gate'), number('experts'), hidden));
  for (let expert = 0; expert < number('experts'); expert++) {
    const of = (name) => at(`block_sparse_moe.experts.${expert}.${name}`);
    tensors.push(
      matrix(of('w1'), inner, hidden, true),
      matrix(of('w2'), hidden, inner, true),
      matrix(of('w3'), inner, hidden, true),
    );
  }
}
mkdirSync(dir, { recursive: true });
await writeSafetensors(join(dir, 'model.safetensors'), tensors, { metadata: { format: 'pt' } });
const config = {
  architectures: ['MixtralForCausalLM'],
  model_type: 'mixtral',
  hidden_size: hidden,
  intermediate_size: inner,
  num_hidden_layers: number('layers'),
  num_attention_heads: number('heads'),
  num_key_value_heads: number('kv-heads'),
  num_local_experts: number('experts'),
  num_experts_per_tok: number('top-k'),
  vocab_size: vocabulary,
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-5,
  rope_theta: 1e6,
  hidden_act: 'silu',
  tie_word_embeddings: false,
  sliding_window: null,
};
writeFileSync(join(dir, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
console.error(`${dir}: ${(tensors.reduce((sum, { byteLength }) => sum + byteLength, 0) / 1e6).toFixed(0)} MB`);
