/** ModelSpec (names of tensors) → what the engine takes (byte ranges of open files). */
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { BitmaskTensor } from '../checkpoint/tensor.ts';
import { EspalierError } from '../errors.ts';
import type { AttentionSpec, FeedForwardPart, LayerSpec, MlpSpec, ModelSpec, WeightSource } from '../models/spec.ts';
import { callNative, type NativeWeight } from '../native.ts';

const elementBytes: Record<string, number> = { BF16: 2, F16: 2, F32: 4 };

/** The bytes of one weight: a tensor, or the rows of one expert inside a fused tensor. */
export function nativeWeight(checkpoint: Checkpoint, source: WeightSource): NativeWeight {
  const [rows, cols] = source.shape.length === 1 ? [1, source.shape[0]!] : [source.shape[0]!, source.shape[1]!];
  const tensor = checkpoint.get(source.tensor);
  const size = elementBytes[tensor.dtype];
  if (size === undefined) {
    throw new EspalierError('MISMATCH', `${source.tensor} is ${tensor.dtype}; weights must be BF16, F16 or F32`, {
      tensor: source.tensor,
    });
  }
  if (tensor.kind === 'packed') {
    throw new EspalierError('MISMATCH', `${source.tensor} is packed, where its elements are needed`, {
      tensor: source.tensor,
    });
  }
  const base = { name: source.tensor, dtype: tensor.dtype, rows, cols };
  if (tensor.kind === 'dense') {
    const { of, expert, row } = source.slice ?? { of: [], expert: 0, row: 0 };
    const begin = tensor.begin + (expert * (of[1] ?? 0) + row) * cols * size;
    return { ...base, file: tensor.file, begin, end: begin + rows * cols * size };
  }
  const matrix = tensor.kind === 'fused' ? tensor.experts[source.slice?.expert ?? 0]! : tensor;
  return { ...base, ...bitmaskRows(checkpoint, matrix, source.slice?.row ?? 0, rows) };
}

/** The bytes of a matrix: packed, where the checkpoint holds it so. */
export function nativeMatrix(checkpoint: Checkpoint, source: WeightSource): NativeWeight {
  const tensor = checkpoint.packed(source.tensor);
  if (tensor === undefined) return nativeWeight(checkpoint, source);
  const { expert, row } = source.slice ?? {};
  const piece = tensor.pieces.find(({ slice }) => slice?.expert === expert && slice?.row === row);
  if (piece === undefined) {
    throw new EspalierError(
      'MISMATCH',
      `${source.tensor} has no packed rows of expert ${expert} from ${row}; convert the source again`,
      { tensor: source.tensor },
    );
  }
  const { dtype, file, begin, end } = piece;
  const [rows, cols] = source.shape as readonly [number, number];
  return { name: source.tensor, dtype, rows, cols, file, begin, end, packed: true };
}

/** Rows [row, row + rows) of a bitmask matrix; the row offsets say where their kept values begin and end. */
function bitmaskRows(checkpoint: Checkpoint, matrix: BitmaskTensor, row: number, rows: number) {
  const maskRow = Math.ceil(matrix.shape[1] / 8);
  const size = elementBytes[matrix.dtype]!;
  const { values, bitmask } = matrix;
  const mask = {
    file: bitmask.file,
    begin: bitmask.begin + row * maskRow,
    end: bitmask.begin + (row + rows) * maskRow,
  };
  const first = row === 0 ? values.begin : values.begin + rowOffset(checkpoint, matrix, row) * size;
  const last =
    row + rows === matrix.shape[0] ? values.end : values.begin + rowOffset(checkpoint, matrix, row + rows) * size;
  return { file: values.file, begin: first, end: last, bitmask: mask };
}

function rowOffset(checkpoint: Checkpoint, matrix: BitmaskTensor, row: number): number {
  const begin = matrix.rowOffsets.begin + row * 8;
  const bytes = callNative(() => checkpoint.files[matrix.rowOffsets.file]!.read(begin, begin + 8), {
    tensor: matrix.name,
  });
  return Number(new DataView(bytes.buffer, bytes.byteOffset).getBigInt64(0, true));
}

export function nativeModel(checkpoint: Checkpoint, spec: ModelSpec): object {
  return {
    ...spec,
    embedding: nativeWeight(checkpoint, spec.embedding),
    finalNorm: nativeWeight(checkpoint, spec.finalNorm),
    head: nativeMatrix(checkpoint, spec.head),
    layers: spec.layers.map((layer) => nativeLayer(checkpoint, layer)),
  };
}

export function nativeLayer(checkpoint: Checkpoint, layer: LayerSpec): object {
  return {
    attentionNorm: nativeWeight(checkpoint, layer.attentionNorm),
    attention: nativeAttention(checkpoint, layer.attention),
    feedForwardNorm: nativeWeight(checkpoint, layer.feedForwardNorm),
    feedForward: layer.feedForward.map((part) => nativePart(checkpoint, part)),
  };
}

const attentionMatrices = ['q', 'k', 'v', 'o'] as const;
const attentionVectors = ['qBias', 'kBias', 'vBias', 'oBias', 'qNorm', 'kNorm'] as const;

function nativeAttention(checkpoint: Checkpoint, attention: AttentionSpec): object {
  const matrices = attentionMatrices.map((name) => [name, nativeMatrix(checkpoint, attention[name])] as const);
  const vectors = attentionVectors.flatMap((name) => {
    const source = attention[name];
    return source === undefined ? [] : [[name, nativeWeight(checkpoint, source)] as const];
  });
  return { ...attention, ...Object.fromEntries([...matrices, ...vectors]) };
}

function nativePart(checkpoint: Checkpoint, part: FeedForwardPart): object {
  if (part.kind === 'dense') {
    const gate = part.gate === undefined ? {} : { gate: nativeWeight(checkpoint, part.gate) };
    return { kind: 'dense', mlp: nativeMlp(checkpoint, part.mlp), ...gate };
  }
  const { weight, correctionBias } = part.router;
  const bias = correctionBias && { correctionBias: nativeWeight(checkpoint, correctionBias) };
  return {
    kind: 'routed',
    router: { ...part.router, weight: nativeWeight(checkpoint, weight), ...bias },
    experts: part.experts.map((expert) => nativeMlp(checkpoint, expert)),
  };
}

export function nativeMlp(checkpoint: Checkpoint, mlp: MlpSpec) {
  return {
    gate: nativeMatrix(checkpoint, mlp.gate),
    up: nativeMatrix(checkpoint, mlp.up),
    down: nativeMatrix(checkpoint, mlp.down),
  };
}
