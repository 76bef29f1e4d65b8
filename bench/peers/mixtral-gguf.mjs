/** A Mixtral checkpoint as a GGUF file for llama.cpp: names, metadata and the order of rows that it expects. */
import { openCheckpoint, toFloat32 } from '../../dist/checkpoint/index.js';
import { describeModel } from '../../dist/models/registry.js';
import { writeGguf } from './gguf.mjs';
import { encodeQ4_0 } from './q4_0.mjs';

/** Bytes of a checkpoint that are in memory at a time. */
const pieceBytes = 8 * 2 ** 20;

/** The numbers by which `general.file_type` names what most tensors are. */
const fileTypes = { BF16: 32, Q4_0: 2 };

/**
 * Converts a bf16 Mixtral checkpoint. `type` holds for every matrix, embeddings and output head too; norms and routers
 * become float32. The texts of the tokens are placeholders: the model is to be given token ids.
 * @param {string} from folder of the checkpoint
 * @param {string} to path of the file
 * @param {'BF16' | 'Q4_0'} type
 * @returns {Promise<number>} bytes of the file
 * @throws {Error} for another family, other weights than bf16, a sliding window, or scaled rotary positions
 */
export async function convertMixtral(from, to, type) {
  const checkpoint = openCheckpoint(from);
  try {
    const { spec } = describeModel(checkpoint.config, checkpoint);
    if (spec.family !== 'mixtral') throw new Error(`${from} is a ${spec.family} model; only mixtral is converted`);
    const { metadata, tensors } = planOf(spec, ropeTheta(checkpoint.config, spec), type);
    return await writeGguf(to, metadata, tensors.map(encoded(checkpoint)));
  } finally {
    checkpoint.dispose();
  }
}

/** A planned tensor with its data. */
function encoded(checkpoint) {
  return ({ name, type, shape, parts }) => ({
    name,
    type,
    shape,
    async *data() {
      for (const part of parts) yield* encodedRows(checkpoint, part, type);
    },
  });
}

function planOf(spec, theta, type) {
  const { heads, kvHeads, headDim } = spec.layers[0].attention;
  const routed = spec.layers[0].feedForward[0];
  const metadata = [
    ['general.architecture', 'string', 'llama'],
    ['general.file_type', 'u32', fileTypes[type]],
    ['general.quantization_version', 'u32', 2],
    ['llama.block_count', 'u32', spec.layers.length],
    ['llama.context_length', 'u32', spec.maxPositions],
    ['llama.embedding_length', 'u32', spec.hiddenSize],
    ['llama.feed_forward_length', 'u32', routed.experts[0].gate.shape[0]],
    ['llama.attention.head_count', 'u32', heads],
    ['llama.attention.head_count_kv', 'u32', kvHeads],
    ['llama.attention.key_length', 'u32', headDim],
    ['llama.attention.value_length', 'u32', headDim],
    ['llama.attention.layer_norm_rms_epsilon', 'f32', spec.normEpsilon],
    ['llama.rope.dimension_count', 'u32', headDim],
    ['llama.rope.freq_base', 'f32', theta],
    ['llama.expert_count', 'u32', routed.experts.length],
    ['llama.expert_used_count', 'u32', routed.router.topK],
    ['llama.vocab_size', 'u32', spec.vocabularySize],
    ['tokenizer.ggml.model', 'string', 'llama'],
    ['tokenizer.ggml.tokens', 'strings', placeholders(spec.vocabularySize)],
  ];
  const one = (name, weight, type, rowsOfHead = 0) => ({
    name: `${name}.weight`,
    type,
    shape: weight.shape,
    parts: [{ weight, rowsOfHead }],
  });
  const stack = (name, weights) => ({
    name: `${name}.weight`,
    type,
    shape: [weights.length, ...weights[0].shape],
    parts: weights.map((weight) => ({ weight, rowsOfHead: 0 })),
  });
  const tensors = [one('token_embd', spec.embedding, type), one('output_norm', spec.finalNorm, 'F32')];
  // Where it is missing, llama.cpp takes the embeddings.
  if (spec.head.tensor !== spec.embedding.tensor) tensors.push(one('output', spec.head, type));
  spec.layers.forEach(({ attentionNorm, attention, feedForwardNorm, feedForward: [{ router, experts }] }, index) => {
    if (attention.window !== 0) throw new Error('a sliding window is not converted');
    const at = (name) => `blk.${index}.${name}`;
    tensors.push(
      one(at('attn_norm'), attentionNorm, 'F32'),
      one(at('attn_q'), attention.q, type, headDim),
      one(at('attn_k'), attention.k, type, headDim),
      one(at('attn_v'), attention.v, type),
      one(at('attn_output'), attention.o, type),
      one(at('ffn_norm'), feedForwardNorm, 'F32'),
      one(at('ffn_gate_inp'), router.weight, 'F32'),
      ...['gate', 'up', 'down'].map((role) =>
        stack(
          at(`ffn_${role}_exps`),
          router.expertOfRow.map((expert) => experts[expert][role]),
        ),
      ),
    );
  });
  return { metadata, tensors };
}

/** llama.cpp does not load a model without a vocabulary, and looks up the tokens of single bytes in it. */
function placeholders(count) {
  return Array.from({ length: count }, (_, id) =>
    id < 256 ? `<0x${id.toString(16).toUpperCase().padStart(2, '0')}>` : `<token ${id}>`,
  );
}

/** The base of the rotary frequencies. llama.cpp is told nothing else, so nothing else may be in them. */
function ropeTheta(config, { rope, layers }) {
  const theta = config.rope_parameters?.rope_theta ?? config.rope_theta ?? 1e6;
  const { headDim } = layers[0].attention;
  const plain = rope.inverseFrequencies.every(
    (found, i) => Math.abs(found * theta ** ((2 * i) / headDim) - 1) < 1e-5 && rope.scale === 1,
  );
  if (!plain) throw new Error('scaled rotary positions are not converted');
  return theta;
}

/** A weight's rows in pieces, as llama.cpp wants them. */
async function* encodedRows(checkpoint, { weight, rowsOfHead }, type) {
  const source = checkpoint.source(weight.tensor);
  if (source.dtype !== 'BF16') throw new Error(`${weight.tensor} is ${source.dtype}; only BF16 is converted`);
  const columns = weight.shape.at(-1);
  const rowBytes = columns * 2;
  const rows = weight.shape.length === 1 ? 1 : weight.shape[0];
  const start = firstRow(weight) * rowBytes;
  // A piece is whole rows, and whole heads where their rows change places.
  const unit = rowsOfHead || 1;
  const step = Math.max(1, Math.floor(pieceBytes / (rowBytes * unit))) * unit;
  for (let row = 0; row < rows; row += step) {
    const end = Math.min(rows, row + step);
    const bytes = await source.read(start + row * rowBytes, start + end * rowBytes);
    yield encode(rowsOfHead === 0 ? bytes : interleaveHeads(bytes, rowBytes, rowsOfHead), type);
  }
}

function firstRow({ slice }) {
  return slice === undefined ? 0 : slice.expert * slice.of[1] + slice.row;
}

/**
 * Checkpoints rotate element i of a head with i + d / 2, llama.cpp rotates neighbours: row 2 i takes the checkpoint's i,
 * row 2 i + 1 its i + d / 2.
 */
function interleaveHeads(bytes, rowBytes, rowsOfHead) {
  const out = new Uint8Array(bytes.byteLength);
  const rows = bytes.byteLength / rowBytes;
  for (let row = 0; row < rows; row++) {
    const inHead = row % rowsOfHead;
    const from = row - inHead + (inHead % 2) * (rowsOfHead / 2) + (inHead >> 1);
    out.set(bytes.subarray(from * rowBytes, (from + 1) * rowBytes), row * rowBytes);
  }
  return out;
}

function encode(bytes, type) {
  if (type === 'BF16') return bytes;
  const values = toFloat32(bytes, 'BF16');
  return type === 'Q4_0' ? encodeQ4_0(values) : new Uint8Array(values.buffer);
}
