/** `espalier convert`: the same checkpoint stored dense or sparse, without loss in either direction. */
import { join } from 'node:path';
import { EspalierError } from '../errors.ts';
import { type Checkpoint, openCheckpoint } from './checkpoint.ts';
import { type ConvertProgress, type ConvertResult, type Shards, writeCopy } from './checkpoint-copy.ts';
import { markSparse, unmarkSparse } from './config-text.ts';
import { type Storage, shardName, singleName } from './file-names.ts';
import { encodeSparse } from './sparse-encode.ts';
import type { CheckpointTensor } from './tensor.ts';
import { copyOf } from './writer.ts';

export interface ConvertOptions {
  /** Folder of the checkpoint to read. It is never written to. */
  from: string;
  /** How to store the copy. */
  to: 'dense' | 'sparse';
  /** Folder to make. */
  output: string;
  /** Replace a checkpoint that stands at the output. @default false */
  overwrite?: boolean | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: ConvertProgress) => void) | undefined;
}

/**
 * Writes a copy of a checkpoint with the same tensors (bit for bit, under the same names, in as many files; of a packed
 * one what its matrices stand for, in the type that they were packed from), the same
 * config apart from `quantization_config`, and every other file untouched. Throws `USAGE` if it is stored that way
 * already, `CONFIG` if it is quantised, and what openCheckpoint, OutputFolder and writeSafetensors throw; after an error
 * nothing new is left at the output, and an old checkpoint there is as it was.
 */
export async function convertCheckpoint(options: ConvertOptions): Promise<ConvertResult> {
  const { from, to, output, overwrite, signal, onProgress } = options;
  using checkpoint = openCheckpoint(from);
  checkConvertible(checkpoint, to);
  const config = to === 'sparse' ? markSparse(checkpoint.configText) : unmarkSparse(checkpoint.configText);
  return await writeCopy(checkpoint, {
    output,
    overwrite,
    storage: to,
    config,
    plan: () => planShards(checkpoint, options),
    metadataOf: (shard) => shard,
    indexed: checkpoint.indexMetadata !== undefined,
    signal,
    onProgress,
  });
}

function checkConvertible(checkpoint: Checkpoint, to: Storage): void {
  const file = join(checkpoint.dir, 'config.json');
  if (checkpoint.storage === 'packed' && to === 'sparse') {
    throw new EspalierError(
      'USAGE',
      `${checkpoint.dir} is packed; convert the checkpoint that it was made from, or this one to dense first`,
      { file: checkpoint.dir, field: 'to' },
    );
  }
  if (checkpoint.storage === to) {
    throw new EspalierError('USAGE', `${checkpoint.dir} is stored ${to} already; there is nothing to convert`, {
      file: checkpoint.dir,
      field: 'to',
    });
  }
  if (to === 'sparse' && checkpoint.config.quantization_config != null) {
    throw new EspalierError(
      'CONFIG',
      `${file} has a quantization_config, whose place the sparse layout needs; convert the unquantised model instead`,
      { file, field: 'quantization_config' },
    );
  }
}

/** Names of the copy's files, in the order of the source's. */
function outputNames({ fileNames, indexMetadata }: Checkpoint, storage: Storage): string[] {
  if (indexMetadata === undefined) return [singleName(storage)];
  return fileNames.map((_, i) => shardName(storage, i + 1, fileNames.length));
}

/** What goes into each file: tensors that were together stay so. */
async function planShards(checkpoint: Checkpoint, { to, signal, onProgress }: ConvertOptions): Promise<Shards> {
  const names = outputNames(checkpoint, to);
  const shards: Shards = new Map(names.map((name) => [name, []]));
  const totalBytes = checkpoint.denseBytes;
  let doneBytes = 0;
  const onBytes = (bytes: number) => {
    doneBytes += bytes;
    onProgress?.({ phase: 'measure', doneBytes, totalBytes });
  };
  for (const name of checkpoint.names()) {
    const shard = shards.get(names[fileOf(checkpoint.get(name))]!)!;
    const source = checkpoint.source(name);
    if (to === 'dense') shard.push(copyOf(source));
    else shard.push(...(await encodeSparse(source, { signal, onBytes })));
  }
  return shards;
}

/** Number of the file that holds a tensor, or its first part. */
function fileOf(tensor: CheckpointTensor): number {
  switch (tensor.kind) {
    case 'dense':
      return tensor.file;
    case 'bitmask':
      return tensor.values.file;
    case 'fused':
      return tensor.experts[0]!.values.file;
    case 'packed':
      return tensor.pieces[0]!.file;
  }
}
