/** `espalier convert --to packed`: a checkpoint whose matrices lie in its files as they do in memory. */
import { join } from 'node:path';
import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { type ConvertProgress, type ConvertResult, type Shards, writeCopy } from '../checkpoint/checkpoint-copy.ts';
import { addQuantization, unmarkSparse } from '../checkpoint/config-text.ts';
import { shardName } from '../checkpoint/file-names.ts';
import { blockName, isBlockName, packedConfig, pageBytes } from '../checkpoint/packed-layout.ts';
import type { TensorToWrite } from '../checkpoint/tensor.ts';
import { copyOf } from '../checkpoint/writer.ts';
import { EspalierError } from '../errors.ts';
import { describeModel } from '../models/registry.ts';
import type { MlpSpec, ModelSpec, WeightSource } from '../models/spec.ts';
import { native, runJob } from '../native.ts';
import { nativeWeight } from './native-spec.ts';
import { type Precision, resolveWeights, type Weights } from './weights.ts';

/** A file is begun after so many bytes. */
const shardBytes = 4 * 2 ** 30;

export interface PackOptions {
  /** Folder of the checkpoint to read, dense or sparse. It is never written to. */
  from: string;
  /** Folder to make. */
  output: string;
  /** What matrices become, as Model.load has it. @default 'source' */
  weights?: Weights | undefined;
  /** Replace a checkpoint that stands at the output. @default false */
  overwrite?: boolean | undefined;
  /** 0: one for each core. @default 0 */
  threads?: number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: ConvertProgress) => void) | undefined;
}

/**
 * Writes a copy of a checkpoint that Model.load maps instead of packing: the matrices that a model multiplies with in the
 * formats that suit their zeros and this processor, all other tensors and files as they are. Another processor expands
 * formats that it has no product for. Throws `USAGE` if the source is packed already, `CONFIG` if it is quantised, and what
 * openCheckpoint, describeModel, OutputFolder and writeSafetensors throw; after an error nothing new is left at the output.
 */
export async function packCheckpoint(options: PackOptions): Promise<ConvertResult> {
  const { from, output, overwrite, signal, onProgress } = options;
  using checkpoint = openCheckpoint(from);
  const config = sourceConfig(checkpoint);
  const { spec } = describeModel(checkpoint.config, checkpoint);
  return await writeCopy(checkpoint, {
    output,
    overwrite,
    storage: 'packed',
    config: addQuantization(config, packedConfig(resolveWeights(options.weights))),
    plan: () => planShards(checkpoint, spec, options),
    metadataOf: () => 0,
    indexed: true,
    alignment: pageBytes,
    signal,
    onProgress,
  });
}

/** config.json without a mark of ours. */
function sourceConfig(checkpoint: Checkpoint): string {
  const file = join(checkpoint.dir, 'config.json');
  if (checkpoint.storage === 'packed') {
    throw new EspalierError(
      'USAGE',
      `${checkpoint.dir} is packed already; convert the checkpoint that it was made from`,
      {
        file: checkpoint.dir,
        field: 'to',
      },
    );
  }
  if (checkpoint.isSparse) return unmarkSparse(checkpoint.configText);
  if (checkpoint.config.quantization_config == null) return checkpoint.configText;
  throw new EspalierError(
    'CONFIG',
    `${file} has a quantization_config, whose place the packed layout needs; convert the unquantised model instead`,
    { file, field: 'quantization_config' },
  );
}

interface Matrix {
  readonly source: WeightSource;
  readonly precision: Precision;
}

/** The matrices that Linear::load packs, in the order in which a token meets them. */
function* matricesOf(spec: ModelSpec, options: PackOptions): Generator<Matrix> {
  const { experts, rest } = resolveWeights(options.weights);
  const mlp = ({ gate, up, down }: MlpSpec, precision: Precision) =>
    [gate, up, down].map((source) => ({ source, precision }));
  for (const { attention, feedForward } of spec.layers) {
    for (const name of ['q', 'k', 'v', 'o'] as const) yield { source: attention[name], precision: rest };
    for (const part of feedForward) {
      if (part.kind === 'dense') yield* mlp(part.mlp, rest);
      else for (const expert of part.experts) yield* mlp(expert, experts);
    }
  }
  yield { source: spec.head, precision: rest };
}

/** The files of the copy: first what stays as it is, then blocks. */
async function planShards(checkpoint: Checkpoint, spec: ModelSpec, options: PackOptions): Promise<Shards> {
  const matrices = [...matricesOf(spec, options)];
  const totalBytes = matrices.reduce((sum, { source }) => sum + elementsOf(source) * 2, 0);
  let doneBytes = 0;
  const blocks: TensorToWrite[] = [];
  for (const matrix of matrices) {
    blocks.push(await blockOf(checkpoint, matrix, options));
    doneBytes += elementsOf(matrix.source) * 2;
    options.onProgress?.({ phase: 'measure', doneBytes, totalBytes });
  }
  const packed = new Set(matrices.map(({ source }) => source.tensor));
  const kept = [...checkpoint.names()].filter((name) => !packed.has(name) || name === spec.embedding.tensor);
  for (const name of kept) {
    if (!isBlockName(name)) continue;
    throw new EspalierError(
      'SPARSE',
      `tensor ${JSON.stringify(name)} cannot be packed: that layout uses names ending in this for itself`,
      { tensor: name },
    );
  }
  const groups = [kept.map((name) => copyOf(checkpoint.source(name))), ...cut(blocks)];
  return new Map(groups.map((tensors, i) => [shardName('packed', i + 1, groups.length), tensors]));
}

async function blockOf(checkpoint: Checkpoint, matrix: Matrix, options: PackOptions): Promise<TensorToWrite> {
  const { source, precision } = matrix;
  const weight = nativeWeight(checkpoint, source);
  const { threads = 0, signal } = options;
  const files = [...checkpoint.files];
  const details = { file: checkpoint.dir, tensor: source.tensor };
  const bytes = await runJob(() => native().packMeasure(weight, files, precision, threads), signal, details);
  return {
    name: blockName(source.tensor, source.slice),
    dtype: 'U8',
    shape: [bytes],
    byteLength: bytes,
    data: () => runJob(() => native().packWeight(weight, files, precision, threads), signal, details),
  };
}

/** Blocks in files of at most shardBytes, or of one block. */
function cut(blocks: readonly TensorToWrite[]): TensorToWrite[][] {
  const shards: TensorToWrite[][] = [];
  let room = 0;
  for (const block of blocks) {
    if (block.byteLength > room) {
      shards.push([]);
      room = shardBytes;
    }
    shards.at(-1)!.push(block);
    room -= block.byteLength;
  }
  return shards;
}

function elementsOf({ shape }: WeightSource): number {
  return shape.reduce((product, size) => product * size, 1);
}
