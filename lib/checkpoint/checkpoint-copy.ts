/** Writing a checkpoint that is another one stored differently: the steps that every conversion shares. */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { throwIfAborted } from '../abort.ts';
import { writeFileAtomic } from './atomic-file.ts';
import type { Checkpoint } from './checkpoint.ts';
import { copyFiles } from './copy-files.ts';
import type { Storage } from './file-names.ts';
import { OutputFolder } from './output.ts';
import { writeShardIndex } from './shard-index.ts';
import type { TensorToWrite } from './tensor.ts';
import { headerBytes, writeSafetensors } from './writer.ts';

/** `measure` counts bytes read to find what gets smaller (not towards dense), `write` bytes of tensors written. */
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

/** What goes into each file, by the file's name. */
export type Shards = Map<string, TensorToWrite[]>;

export interface CopyOptions {
  /** Folder to make. */
  readonly output: string;
  readonly overwrite?: boolean | undefined;
  readonly storage: Storage;
  /** The text of config.json. */
  readonly config: string;
  /** Called when the output is known to be usable. */
  readonly plan: () => Promise<Shards>;
  /** Which of the source's files gives a file of the copy its metadata. */
  readonly metadataOf: (shard: number) => number;
  /** Whether the copy has an index beside its files. */
  readonly indexed: boolean;
  /** Where the tensors of a file begin: a multiple of so many bytes. @default as safetensors has it */
  readonly alignment?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: ConvertProgress) => void) | undefined;
}

/** config.json and the like, rounded up. */
const smallBytes = 4096;

/** Writes the copy; after an error nothing new is left at the output, and an old checkpoint there is as it was. */
export async function writeCopy(checkpoint: Checkpoint, options: CopyOptions): Promise<ConvertResult> {
  const { output, overwrite, config, plan, signal } = options;
  const folder = OutputFolder.open({ output, input: checkpoint.dir, overwrite, resumable: false });
  try {
    const shards = await plan();
    const files = checkpoint.otherFiles();
    folder.requireSpace(spaceFor(checkpoint, shards, files, options));
    await writeShards(checkpoint, shards, folder.partial, options);
    await copyFiles(checkpoint.dir, folder.partial, files, signal);
    await writeFileAtomic(join(folder.partial, 'config.json'), config);
    throwIfAborted(signal);
    await folder.finish();
    return { output: folder.output, sourceBytes: checkpoint.storedBytes, outputBytes: bytesOf(shards) };
  } catch (error) {
    folder.discard();
    throw error;
  }
}

function bytesOf(shards: Shards): number {
  return [...shards.values()].flat().reduce((sum, { byteLength }) => sum + byteLength, 0);
}

/** Bytes that the copy will take: tensors and headers, index and config, and the other files. */
function spaceFor(
  checkpoint: Checkpoint,
  shards: Shards,
  files: readonly string[],
  { metadataOf, indexed, alignment = 0 }: CopyOptions,
): number {
  let bytes = bytesOf(shards) + checkpoint.configText.length + smallBytes;
  for (const [i, [name, tensors]] of [...shards].entries()) {
    bytes += headerBytes(tensors, checkpoint.files[metadataOf(i)]!.metadata) + alignment;
    if (!indexed) continue;
    for (const tensor of tensors) bytes += tensor.name.length + name.length + 12;
  }
  for (const file of files) bytes += statSync(join(checkpoint.dir, file)).size;
  return bytes;
}

async function writeShards(
  checkpoint: Checkpoint,
  shards: Shards,
  folder: string,
  { storage, metadataOf, indexed, alignment, signal, onProgress }: CopyOptions,
): Promise<void> {
  const totalBytes = bytesOf(shards);
  let doneBytes = 0;
  const onBytes = (bytes: number) => {
    doneBytes += bytes;
    onProgress?.({ phase: 'write', doneBytes, totalBytes });
  };
  for (const [i, [name, tensors]] of [...shards].entries()) {
    const { metadata } = checkpoint.files[metadataOf(i)]!;
    await writeSafetensors(join(folder, name), tensors, { metadata, alignment, signal, onBytes });
  }
  if (indexed) await writeShardIndex(folder, storage, shards, checkpoint.indexMetadata);
}
