/** `espalier convert`: the same checkpoint stored dense or sparse, without loss in either direction. */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { throwIfAborted } from '../abort.ts';
import { EspalierError } from '../errors.ts';
import { writeFileAtomic } from './atomic-file.ts';
import { type Checkpoint, openCheckpoint } from './checkpoint.ts';
import { markSparse, unmarkSparse } from './config-text.ts';
import { copyFiles } from './copy-files.ts';
import { type Storage, shardName, singleName } from './file-names.ts';
import { OutputFolder } from './output.ts';
import { writeShardIndex } from './shard-index.ts';
import { encodeSparse } from './sparse-encode.ts';
import type { CheckpointTensor, TensorToWrite } from './tensor.ts';
import { copyOf, headerBytes, writeSafetensors } from './writer.ts';

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

/** `measure` counts bytes read to find what gets smaller (only towards sparse), `write` bytes of tensors written. */
export interface ConvertProgress {
  readonly phase: 'measure' | 'write';
  readonly doneBytes: number;
  readonly totalBytes: number;
}

export interface ConvertResult {
  /** Absolute path of the folder made. */
  readonly output: string;
  /** Bytes of all tensors as the source stores them, and as the copy does. */
  readonly sourceBytes: number;
  readonly outputBytes: number;
}

/**
 * Writes a copy of a checkpoint with the same tensors (bit for bit, under the same names, in as many files; of a packed
 * one what its matrices stand for, in the type that they were packed from), the same
 * config apart from `quantization_config`, and every other file untouched. Throws `USAGE` if it is stored that way
 * already, `CONFIG` if it is quantised, and what openCheckpoint, OutputFolder and writeSafetensors throw; after an error
 * nothing new is left at the output, and an old checkpoint there is as it was.
 */
export async function convertCheckpoint(options: ConvertOptions): Promise<ConvertResult> {
  const { from, to, signal } = options;
  const checkpoint = openCheckpoint(from);
  try {
    checkConvertible(checkpoint, to);
    const folder = OutputFolder.open({
      output: options.output,
      input: from,
      overwrite: options.overwrite,
      resumable: false,
    });
    try {
      const shards = await planShards(checkpoint, options);
      const files = checkpoint.otherFiles();
      folder.requireSpace(spaceFor(checkpoint, shards, files));
      await writeShards(checkpoint, shards, folder.partial, options);
      await copyFiles(checkpoint.dir, folder.partial, files, signal);
      const config = to === 'sparse' ? markSparse(checkpoint.configText) : unmarkSparse(checkpoint.configText);
      await writeFileAtomic(join(folder.partial, 'config.json'), config);
      throwIfAborted(signal);
      await folder.finish();
      return { output: folder.output, sourceBytes: checkpoint.storedBytes, outputBytes: bytesOfShards(shards) };
    } catch (error) {
      folder.discard();
      throw error;
    }
  } finally {
    checkpoint.dispose();
  }
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

type Shards = Map<string, TensorToWrite[]>;

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

function bytesOfShards(shards: Shards): number {
  return [...shards.values()].flat().reduce((sum, { byteLength }) => sum + byteLength, 0);
}

/** Bytes that the copy will take: tensors and headers, the index and config (small, rounded up), and the other files. */
function spaceFor(checkpoint: Checkpoint, shards: Shards, files: readonly string[]): number {
  let bytes = bytesOfShards(shards) + checkpoint.configText.length + 4096;
  for (const [i, [name, tensors]] of [...shards].entries()) {
    bytes += headerBytes(tensors, checkpoint.files[i]!.metadata);
    if (checkpoint.indexMetadata === undefined) continue;
    for (const tensor of tensors) bytes += tensor.name.length + name.length + 12;
  }
  for (const file of files) bytes += statSync(join(checkpoint.dir, file)).size;
  return bytes;
}

async function writeShards(
  checkpoint: Checkpoint,
  shards: Shards,
  folder: string,
  { to, signal, onProgress }: ConvertOptions,
): Promise<void> {
  const totalBytes = bytesOfShards(shards);
  let doneBytes = 0;
  const onBytes = (bytes: number) => {
    doneBytes += bytes;
    onProgress?.({ phase: 'write', doneBytes, totalBytes });
  };
  for (const [i, [name, tensors]] of [...shards].entries()) {
    const { metadata } = checkpoint.files[i]!;
    await writeSafetensors(join(folder, name), tensors, { metadata, signal, onBytes });
  }
  if (checkpoint.indexMetadata !== undefined) await writeShardIndex(folder, to, shards, checkpoint.indexMetadata);
}
